"""DIST: ConvNeXt-T teaches Vim-T on CIFAR-100 at 224 px.

    bash tools/dist_train.sh configs/dist/convnext-tiny_to_vim-tiny_c100.py 4

Needs CIFAR-100 in data/cifar100 (downloaded where the network allows), 4 GPUs and the teacher,
which configs/teachers/convnext-tiny_c100.py trains.
No numbers are published for this pair, as far as we know.
"""

_base_ = ['../_base_/pairs/convnext-tiny_to_vim-tiny_c100.py', '../_base_/methods/dist.py']

model = _base_.method

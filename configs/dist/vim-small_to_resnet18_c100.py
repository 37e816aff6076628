"""DIST: Vim-S teaches ResNet18 on CIFAR-100 at 224 px.

    bash tools/dist_train.sh configs/dist/vim-small_to_resnet18_c100.py 4

Needs CIFAR-100 in data/cifar100 (downloaded where the network allows), 4 GPUs and the teacher,
which configs/teachers/vim-small_c100.py trains.
"""

_base_ = ['../_base_/pairs/vim-small_to_resnet18_c100.py', '../_base_/methods/dist.py']

model = _base_.method

"""DIST: ConvNeXt-T teaches DeiT-T on CIFAR-100 at 224 px.

    bash tools/dist_train.sh configs/dist/convnext-tiny_to_deit-tiny_c100.py 4

Needs CIFAR-100 in data/cifar100 (downloaded where the network allows), 4 GPUs and the teacher,
which configs/teachers/convnext-tiny_c100.py trains.
Published: teacher 88.41, student alone 68.00, DIST 73.55 (OFA-KD's paper, as others retell it); not
rerun by us.
"""

_base_ = ['../_base_/pairs/convnext-tiny_to_deit-tiny_c100.py', '../_base_/methods/dist.py']

model = _base_.method

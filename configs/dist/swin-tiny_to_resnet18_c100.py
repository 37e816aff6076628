"""DIST: Swin-T teaches ResNet18 on CIFAR-100 at 224 px.

    bash tools/dist_train.sh configs/dist/swin-tiny_to_resnet18_c100.py 4

Needs CIFAR-100 in data/cifar100 (downloaded where the network allows), 4 GPUs and the teacher,
which configs/teachers/swin-tiny_c100.py trains.
Published: teacher 89.26, student alone 74.01, DIST 77.75 (OFA-KD's paper, as others retell it); not
rerun by us.
"""

_base_ = ['../_base_/pairs/swin-tiny_to_resnet18_c100.py', '../_base_/methods/dist.py']

model = _base_.method

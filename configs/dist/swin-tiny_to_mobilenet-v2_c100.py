"""DIST: Swin-T teaches MobileNetV2 on CIFAR-100 at 224 px.

    bash tools/dist_train.sh configs/dist/swin-tiny_to_mobilenet-v2_c100.py 4

Needs CIFAR-100 in data/cifar100 (downloaded where the network allows), 4 GPUs and the teacher,
which configs/teachers/swin-tiny_c100.py trains.
Published: teacher 89.26, student alone 73.68, DIST 72.89 (OFA-KD's paper, as others retell it); not
rerun by us.
"""

_base_ = ['../_base_/pairs/swin-tiny_to_mobilenet-v2_c100.py', '../_base_/methods/dist.py']

model = _base_.method

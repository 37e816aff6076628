"""DIST: Mixer-B/16 teaches DeiT-T on CIFAR-100 at 224 px.

    bash tools/dist_train.sh configs/dist/mixer-b16_to_deit-tiny_c100.py 4

Needs CIFAR-100 in data/cifar100 (downloaded where the network allows), 4 GPUs and the teacher,
which configs/teachers/mixer-b16_c100.py trains.
Published: teacher 87.29, student alone 68.00, DIST 71.67 (OFA-KD's paper, as others retell it); not
rerun by us.
"""

_base_ = ['../_base_/pairs/mixer-b16_to_deit-tiny_c100.py', '../_base_/methods/dist.py']

model = _base_.method

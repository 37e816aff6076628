"""DKD: Mixer-B/16 teaches DeiT-T on CIFAR-100 at 224 px.

    bash tools/dist_train.sh configs/dkd/mixer-b16_to_deit-tiny_c100.py 4

Needs CIFAR-100 in data/cifar100 (downloaded where the network allows), 4 GPUs and the teacher,
which configs/teachers/mixer-b16_c100.py trains.
Published: teacher 87.29, student alone 68.00, DKD 73.44 (OFA-KD's paper, as others retell it); not
rerun by us.
"""

_base_ = ['../_base_/pairs/mixer-b16_to_deit-tiny_c100.py', '../_base_/methods/dkd.py']

model = _base_.method

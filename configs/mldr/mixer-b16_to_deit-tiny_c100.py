"""MLDR-KD: Mixer-B/16 teaches DeiT-T on CIFAR-100 at 224 px.

    bash tools/dist_train.sh configs/mldr/mixer-b16_to_deit-tiny_c100.py 4

Requires CIFAR-100 in data/cifar100 (downloaded if the network allows), 4 GPUs and the teacher that
configs/teachers/mixer-b16_c100.py trains.
"""

_base_ = ['../pairs/mixer-b16_to_deit-tiny_c100.py', '../_base_/methods/mldr_paper.py']

model = _base_.method

"""The student alone: DeiT-T on CIFAR-100 at 224 px, the recipe of the distilled one.

    bash tools/dist_train.sh configs/scratch/deit-tiny_c100.py 4

Needs CIFAR-100 in data/cifar100 (downloaded where the network allows) and 4 GPUs.
"""

_base_ = [
    '../_base_/models/deit-tiny.py',
    '../_base_/datasets/cifar100_224_strong.py',
    '../_base_/schedules/transformer_300e.py',
    '../_base_/default_runtime.py',
]

model = _base_.deit_tiny

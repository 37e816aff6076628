"""The student alone: Vim-T on CIFAR-100 at 224 px, the recipe of the distilled one.

    bash tools/dist_train.sh configs/scratch/vim-tiny_c100.py 4

Needs CIFAR-100 in data/cifar100 (downloaded where the network allows) and 4 GPUs.
"""

_base_ = [
    '../_base_/models/vim-tiny.py',
    '../_base_/datasets/cifar100_224_strong.py',
    '../_base_/schedules/mamba_300e.py',
    '../_base_/default_runtime.py',
]

model = _base_.vim_tiny

"""Student alone: ResMLP-S12 on CIFAR-100 at 224 px, with the recipe of the distilled run.

    bash tools/dist_train.sh configs/scratch/resmlp-s12_c100.py 4

Requires CIFAR-100 in data/cifar100 (downloaded if the network allows) and 4 GPUs.
"""

_base_ = [
    '../_base_/models/resmlp-s12.py',
    '../_base_/datasets/cifar100_224_strong.py',
    '../_base_/schedules/transformer_300e.py',
    '../_base_/default_runtime.py',
]

model = _base_.resmlp_s12

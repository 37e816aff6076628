"""Student alone: ResMLP-S12 on Tiny-ImageNet at 224 px, with the recipe of the distilled run.

    bash tools/dist_train.sh configs/scratch/resmlp-s12_tinyimagenet.py 4

Requires Tiny-ImageNet in data/tiny-imagenet and 4 GPUs.
"""

_base_ = [
    '../_base_/models/resmlp-s12.py',
    '../_base_/datasets/tiny-imagenet_224_strong.py',
    '../_base_/schedules/transformer_300e.py',
    '../_base_/default_runtime.py',
]

model = dict(_base_.resmlp_s12, num_classes=200)

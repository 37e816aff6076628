"""Student alone: ResNet18 on Tiny-ImageNet at 64 px, with the recipe of the distilled run.

    bash tools/dist_train.sh configs/scratch/resnet18_tinyimagenet_64px.py 4

Requires Tiny-ImageNet in data/tiny-imagenet and 4 GPUs.
"""

_base_ = [
    '../_base_/models/resnet18_64px.py',
    '../_base_/datasets/tiny-imagenet_64.py',
    '../_base_/schedules/cnn_300e.py',
    '../_base_/default_runtime.py',
]

model = _base_.resnet18

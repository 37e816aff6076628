"""The student alone: ResNet101 on Tiny-ImageNet at 224 px, the recipe of the distilled one.

    bash tools/dist_train.sh configs/scratch/resnet101_tiny.py 4

Needs Tiny-ImageNet in data/tiny-imagenet and 4 GPUs.
"""

_base_ = [
    '../_base_/models/resnet101.py',
    '../_base_/datasets/tiny-imagenet_224.py',
    '../_base_/schedules/cnn_300e.py',
    '../_base_/default_runtime.py',
]

model = dict(_base_.resnet101, num_classes=200)

"""Student alone: ResNet101 on Tiny-ImageNet at 224 px, with the recipe of the distilled run.

    bash tools/dist_train.sh configs/scratch/resnet101_tinyimagenet.py 4

Requires Tiny-ImageNet in data/tiny-imagenet and 4 GPUs.
"""

_base_ = [
    '../_base_/models/resnet101.py',
    '../_base_/datasets/tiny-imagenet_224.py',
    '../_base_/schedules/cnn_300e.py',
    '../_base_/default_runtime.py',
]

model = dict(_base_.resnet101, num_classes=200)

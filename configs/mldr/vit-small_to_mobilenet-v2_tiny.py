"""MLDR-KD: ViT-S teaches MobileNetV2 on Tiny-ImageNet at 224 px.

    bash tools/dist_train.sh configs/mldr/vit-small_to_mobilenet-v2_tiny.py 4

Needs Tiny-ImageNet in data/tiny-imagenet, 4 GPUs and the teacher, which
configs/teachers/vit-small_tiny.py trains.
"""

_base_ = ['../_base_/pairs/vit-small_to_mobilenet-v2_tiny.py', '../_base_/methods/mldr.py']

model = _base_.method

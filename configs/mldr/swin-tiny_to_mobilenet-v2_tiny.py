"""MLDR-KD: Swin-T teaches MobileNetV2 on Tiny-ImageNet at 224 px.

    bash tools/dist_train.sh configs/mldr/swin-tiny_to_mobilenet-v2_tiny.py 4

Needs Tiny-ImageNet in data/tiny-imagenet, 4 GPUs and the teacher, which
configs/teachers/swin-tiny_tiny.py trains.
"""

_base_ = ['../_base_/pairs/swin-tiny_to_mobilenet-v2_tiny.py', '../_base_/methods/mldr.py']

model = _base_.method

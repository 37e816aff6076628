"""MLDR-KD: ViT-L teaches ResNet101 on Tiny-ImageNet at 224 px.

    bash tools/dist_train.sh configs/mldr/vit-large_to_resnet101_tiny.py 4

Needs Tiny-ImageNet in data/tiny-imagenet, 4 GPUs and the teacher, which
configs/teachers/vit-large_tiny.py trains.
"""

_base_ = ['../_base_/pairs/vit-large_to_resnet101_tiny.py', '../_base_/methods/mldr.py']

model = _base_.method

"""MLDR-KD at 64 px: ViT-S of patch 8 teaches ResNet18 on Tiny-ImageNet.

    bash tools/dist_train.sh configs/mldr/vit-small_to_resnet18_tiny_64px.py 4

Needs Tiny-ImageNet in data/tiny-imagenet, 4 GPUs and the teacher, which
configs/teachers/vit-small_tiny_64px.py trains. The recipe is that of 224 px: none is published for
64.
"""

_base_ = ['../_base_/pairs/vit-small_to_resnet18_tiny_64px.py', '../_base_/methods/mldr.py']

model = _base_.method

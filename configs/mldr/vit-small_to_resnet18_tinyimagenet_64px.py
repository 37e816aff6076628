"""MLDR-KD: ViT-S (patch 8) teaches ResNet18 on Tiny-ImageNet at 64 px.

    bash tools/dist_train.sh configs/mldr/vit-small_to_resnet18_tinyimagenet_64px.py 4

Requires Tiny-ImageNet in data/tiny-imagenet, 4 GPUs and the teacher that
configs/teachers/vit-small_tinyimagenet_64px.py trains. The recipe is the one for 224 px; none is
published for 64 px.
"""

_base_ = ['../pairs/vit-small_to_resnet18_tinyimagenet_64px.py', '../_base_/methods/mldr_paper.py']

model = _base_.method

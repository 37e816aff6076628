"""MLDR-KD: ViT-L teaches ResNet101 on Tiny-ImageNet at 224 px.

    bash tools/dist_train.sh configs/mldr/vit-large_to_resnet101_tinyimagenet.py 4

Requires Tiny-ImageNet in data/tiny-imagenet, 4 GPUs and the teacher that
configs/teachers/vit-large_tinyimagenet.py trains.
"""

_base_ = ['../pairs/vit-large_to_resnet101_tinyimagenet.py', '../_base_/methods/mldr_paper.py']

model = _base_.method

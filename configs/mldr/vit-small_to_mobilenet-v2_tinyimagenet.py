"""MLDR-KD: ViT-S teaches MobileNetV2 on Tiny-ImageNet at 224 px.

    bash tools/dist_train.sh configs/mldr/vit-small_to_mobilenet-v2_tinyimagenet.py 4

Requires Tiny-ImageNet in data/tiny-imagenet, 4 GPUs and the teacher that
configs/teachers/vit-small_tinyimagenet.py trains.
"""

_base_ = ['../pairs/vit-small_to_mobilenet-v2_tinyimagenet.py', '../_base_/methods/mldr_paper.py']

model = _base_.method

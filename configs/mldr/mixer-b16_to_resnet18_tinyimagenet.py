"""MLDR-KD: Mixer-B/16 teaches ResNet18 on Tiny-ImageNet at 224 px.

    bash tools/dist_train.sh configs/mldr/mixer-b16_to_resnet18_tinyimagenet.py 4

Requires Tiny-ImageNet in data/tiny-imagenet, 4 GPUs and the teacher that
configs/teachers/mixer-b16_tinyimagenet.py trains.
"""

_base_ = ['../pairs/mixer-b16_to_resnet18_tinyimagenet.py', '../_base_/methods/mldr_paper.py']

model = _base_.method

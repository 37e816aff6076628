"""MLDR-KD: Mixer-B/16 teaches ResNet18 on Tiny-ImageNet at 224 px.

    bash tools/dist_train.sh configs/mldr/mixer-b16_to_resnet18_tiny.py 4

Needs Tiny-ImageNet in data/tiny-imagenet, 4 GPUs and the teacher, which
configs/teachers/mixer-b16_tiny.py trains.
"""

_base_ = ['../_base_/pairs/mixer-b16_to_resnet18_tiny.py', '../_base_/methods/mldr.py']

model = _base_.method

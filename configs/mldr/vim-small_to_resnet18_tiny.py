"""MLDR-KD: Vim-S teaches ResNet18 on Tiny-ImageNet at 224 px.

    bash tools/dist_train.sh configs/mldr/vim-small_to_resnet18_tiny.py 4

Needs Tiny-ImageNet in data/tiny-imagenet, 4 GPUs and the teacher, which
configs/teachers/vim-small_tiny.py trains.
"""

_base_ = ['../_base_/pairs/vim-small_to_resnet18_tiny.py', '../_base_/methods/mldr.py']

model = _base_.method

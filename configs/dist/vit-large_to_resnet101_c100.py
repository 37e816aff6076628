"""DIST: ViT-L teaches ResNet101 on CIFAR-100 at 224 px.

    bash tools/dist_train.sh configs/dist/vit-large_to_resnet101_c100.py 4

Needs CIFAR-100 in data/cifar100 (downloaded where the network allows), 4 GPUs and the teacher,
which configs/teachers/vit-large_c100.py trains.
"""

_base_ = ['../_base_/pairs/vit-large_to_resnet101_c100.py', '../_base_/methods/dist.py']

model = _base_.method

"""MLDR-KD: ViT-L teaches ResNet101 on CIFAR-100 at 224 px.

    bash tools/dist_train.sh configs/mldr/vit-large_to_resnet101_c100.py 4

Requires CIFAR-100 in data/cifar100 (downloaded if the network allows), 4 GPUs and the teacher that
configs/teachers/vit-large_c100.py trains.
"""

_base_ = ['../pairs/vit-large_to_resnet101_c100.py', '../_base_/methods/mldr_paper.py']

model = _base_.method

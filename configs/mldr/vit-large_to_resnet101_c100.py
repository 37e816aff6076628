"""MLDR-KD: ViT-L teaches ResNet101 on CIFAR-100 at 224 px.

    bash tools/dist_train.sh configs/mldr/vit-large_to_resnet101_c100.py 4

Needs CIFAR-100 in data/cifar100 (downloaded where the network allows), 4 GPUs and the teacher,
which configs/teachers/vit-large_c100.py trains.
Published: teacher 94.99, student alone 78.41, MLDR-KD 80.14 (paper's code); not rerun by us.
"""

_base_ = ['../_base_/pairs/vit-large_to_resnet101_c100.py', '../_base_/methods/mldr.py']

model = _base_.method

"""MLDR-KD: ViT-S teaches ResNet18 on CIFAR-100 at 224 px.

    bash tools/dist_train.sh configs/mldr/vit-small_to_resnet18_c100.py 4

Needs CIFAR-100 in data/cifar100 (downloaded where the network allows), 4 GPUs and the teacher,
which configs/teachers/vit-small_c100.py trains.
Published: teacher 92.04, student alone 74.01, MLDR-KD 80.51 (paper's code); not rerun by us.
"""

_base_ = ['../_base_/pairs/vit-small_to_resnet18_c100.py', '../_base_/methods/mldr.py']

model = _base_.method

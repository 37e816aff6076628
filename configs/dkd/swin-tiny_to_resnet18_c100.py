"""DKD: Swin-T teaches ResNet18 on CIFAR-100 at 224 px.

    bash tools/dist_train.sh configs/dkd/swin-tiny_to_resnet18_c100.py 4

Needs CIFAR-100 in data/cifar100 (downloaded where the network allows), 4 GPUs and the teacher,
which configs/teachers/swin-tiny_c100.py trains.
Published: teacher 89.26, student alone 74.01, DKD 80.26 (OFA-KD's paper, as others retell it); not
rerun by us.
"""

_base_ = ['../_base_/pairs/swin-tiny_to_resnet18_c100.py', '../_base_/methods/dkd.py']

model = _base_.method

"""MLDR-KD: Swin-T teaches MobileNetV2 on CIFAR-100 at 224 px.

    bash tools/dist_train.sh configs/mldr/swin-tiny_to_mobilenet-v2_c100.py 4

Requires CIFAR-100 in data/cifar100 (downloaded if the network allows), 4 GPUs and the teacher that
configs/teachers/swin-tiny_c100.py trains.
"""

_base_ = ['../pairs/swin-tiny_to_mobilenet-v2_c100.py', '../_base_/methods/mldr_paper.py']

model = _base_.method

"""MLDR-KD: ConvNeXt-T teaches Swin-P on CIFAR-100 at 224 px.

    bash tools/dist_train.sh configs/mldr/convnext-tiny_to_swin-pico_c100.py 4

Requires CIFAR-100 in data/cifar100 (downloaded if the network allows), 4 GPUs and the teacher that
configs/teachers/convnext-tiny_c100.py trains.
"""

_base_ = ['../pairs/convnext-tiny_to_swin-pico_c100.py', '../_base_/methods/mldr_paper.py']

model = _base_.method

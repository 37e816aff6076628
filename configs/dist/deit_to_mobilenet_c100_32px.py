"""DIST at 32 px: a small DeiT teaches MobileNetV2 of half width on CIFAR-100.

    python tools/train.py configs/dist/deit_to_mobilenet_c100_32px.py

Needs CIFAR-100 in data/cifar100 and the teacher, which
configs/teachers/deit-small_c100_32px.py trains; runs without a GPU.
"""

_base_ = ['../_base_/pairs/deit_to_mobilenet_c100_32px.py', '../_base_/methods/dist.py']

model = _base_.method

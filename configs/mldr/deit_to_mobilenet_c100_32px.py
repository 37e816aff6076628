"""MLDR-KD: A small DeiT teaches half-width MobileNetV2 on CIFAR-100 at 32 px.

    python tools/train.py configs/mldr/deit_to_mobilenet_c100_32px.py

Requires CIFAR-100 in data/cifar100 (downloaded if the network allows) and the teacher that
configs/teachers/deit-small_c100_32px.py trains. No GPU needed; docs/cifar100.md shows a run. With
smaller batches add --auto-scale-lr: MLDR-KD diverges at the full learning rate.
"""

_base_ = ['../pairs/deit_to_mobilenet_c100_32px.py', '../_base_/methods/mldr_paper.py']

model = _base_.method

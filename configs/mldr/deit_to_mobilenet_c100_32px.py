"""MLDR-KD at 32 px: a small DeiT teaches MobileNetV2 of half width on CIFAR-100.

    python tools/train.py configs/mldr/deit_to_mobilenet_c100_32px.py

Needs CIFAR-100 in data/cifar100 and the teacher, which
configs/teachers/deit-small_c100_32px.py trains; runs without a GPU. docs/first_run.md has a run.
With smaller batches pass --auto-scale-lr: at the full learning rate MLDR-KD then diverges.
"""

_base_ = ['../_base_/pairs/deit_to_mobilenet_c100_32px.py', '../_base_/methods/mldr.py']

model = _base_.method

"""The student alone at 32 px: MobileNetV2 of half width on CIFAR-100.

    python tools/train.py configs/scratch/mobilenet_c100_32px.py

Needs CIFAR-100 in data/cifar100; runs without a GPU. docs/first_run.md has a run of it.
"""

_base_ = [
    '../_base_/models/mobilenet-v2_32px.py',
    '../_base_/datasets/cifar100_32.py',
    '../_base_/schedules/cnn_40e.py',
    '../_base_/default_runtime.py',
]

model = _base_.mobilenet_v2

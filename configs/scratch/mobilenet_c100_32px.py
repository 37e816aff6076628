"""Student alone: half-width MobileNetV2 on CIFAR-100 at 32 px, with the distilled run's recipe.

    python tools/train.py configs/scratch/mobilenet_c100_32px.py

Requires CIFAR-100 in data/cifar100 (downloaded if the network allows). No GPU needed.
"""

_base_ = [
    '../_base_/models/mobilenet-v2_32px.py',
    '../_base_/datasets/cifar100_32.py',
    '../_base_/schedules/cnn_40e.py',
    '../_base_/default_runtime.py',
]

model = _base_.mobilenet_v2

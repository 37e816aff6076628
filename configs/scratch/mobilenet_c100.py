"""Student alone: MobileNetV2 on CIFAR-100 at 224 px, with the recipe of the distilled run.

    bash tools/dist_train.sh configs/scratch/mobilenet_c100.py 4

Requires CIFAR-100 in data/cifar100 (downloaded if the network allows) and 4 GPUs.
"""

_base_ = [
    '../_base_/models/mobilenet-v2.py',
    '../_base_/datasets/cifar100_224.py',
    '../_base_/schedules/cnn_300e.py',
    '../_base_/default_runtime.py',
]

model = _base_.mobilenet_v2

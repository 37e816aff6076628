"""Half-width MobileNetV2 with the usual strides for 32 px, for 100 classes."""

_base_ = 'mobilenet-v2.py'

mobilenet_v2 = dict(backbone=dict(type='MobileNetV2_CIFAR', widen_factor=0.5))

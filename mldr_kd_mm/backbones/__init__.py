"""Backbones that mmpretrain lacks."""

from mldr_kd_mm.backbones.mobilenet_v2_cifar import MobileNetV2_CIFAR

__all__ = ['MobileNetV2_CIFAR']

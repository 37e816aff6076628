"""Backbones that mmpretrain does not have."""

from mldr_kd_mm.models.backbones.mobilenet_v2_cifar import MobileNetV2_CIFAR
from mldr_kd_mm.models.backbones.vision_mamba import VisionMamba

__all__ = ['MobileNetV2_CIFAR', 'VisionMamba']

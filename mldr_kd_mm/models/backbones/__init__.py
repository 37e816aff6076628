"""Backbones and classifiers that mmpretrain does not have."""

from mldr_kd_mm.models.backbones.mobilenet_v2_cifar import MobileNetV2_CIFAR
from mldr_kd_mm.models.backbones.modules import BuiltClassifier, ModuleClassifier
from mldr_kd_mm.models.backbones.vision_mamba import VisionMamba

__all__ = ['BuiltClassifier', 'MobileNetV2_CIFAR', 'ModuleClassifier', 'VisionMamba']

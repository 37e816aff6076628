"""Data sets that mmpretrain lacks or reads less carefully."""

from mldr_kd_mm.datasets.cifar import CIFAR100
from mldr_kd_mm.datasets.digits import Digits
from mldr_kd_mm.datasets.tiny_imagenet import TinyImageNet

__all__ = ['CIFAR100', 'Digits', 'TinyImageNet']

"""Data sets that mmpretrain lacks or reads less carefully, and how they are drawn and prepared."""

from mldr_kd_mm.datasets.cifar import VerifiedCIFAR100
from mldr_kd_mm.datasets.digits import Digits
from mldr_kd_mm.datasets.image_folder import ImageFolder
from mldr_kd_mm.datasets.tiny_imagenet import TinyImageNet
from mldr_kd_mm.datasets.transforms import PackPlanes, RandomResizedCropFlip
from mldr_kd_mm.datasets.view_sampler import ViewSampler

__all__ = [
    'VerifiedCIFAR100',
    'Digits',
    'ImageFolder',
    'PackPlanes',
    'RandomResizedCropFlip',
    'TinyImageNet',
    'ViewSampler',
]

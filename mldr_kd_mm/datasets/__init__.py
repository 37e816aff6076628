"""Data sets, transforms and the sampler that makes augmented samples reproducible."""

from mldr_kd_mm.datasets.cifar import VerifiedCIFAR100
from mldr_kd_mm.datasets.digits import Digits
from mldr_kd_mm.datasets.folder import FolderDataset
from mldr_kd_mm.datasets.held_out import held_out_part
from mldr_kd_mm.datasets.image_folder import ImageFolder
from mldr_kd_mm.datasets.tiny_imagenet import TinyImageNet
from mldr_kd_mm.datasets.transforms import PackPlanes, RandomResizedCropFlip
from mldr_kd_mm.datasets.unlabeled import MixedDataset, MixedSampler, UnlabeledFolder
from mldr_kd_mm.datasets.view_sampler import ViewSampler

__all__ = [
    'Digits',
    'FolderDataset',
    'ImageFolder',
    'MixedDataset',
    'MixedSampler',
    'PackPlanes',
    'RandomResizedCropFlip',
    'TinyImageNet',
    'UnlabeledFolder',
    'VerifiedCIFAR100',
    'ViewSampler',
    'held_out_part',
]

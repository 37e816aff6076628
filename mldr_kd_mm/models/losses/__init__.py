"""Losses that compare a student's tensors with a teacher's, one file per method."""

from mldr_kd_mm.models.losses.cc import CCLoss
from mldr_kd_mm.models.losses.crd import CRDLoss
from mldr_kd_mm.models.losses.dfra import DFRALoss
from mldr_kd_mm.models.losses.dist import DISTLoss
from mldr_kd_mm.models.losses.dkd import DKDLoss
from mldr_kd_mm.models.losses.fitnet import FitNetLoss
from mldr_kd_mm.models.losses.hcd import HCDLoss
from mldr_kd_mm.models.losses.info_nce import InfoNCELoss
from mldr_kd_mm.models.losses.kd import HardKDLoss, KDLoss
from mldr_kd_mm.models.losses.logit_standardization import LogitStandardizationLoss
from mldr_kd_mm.models.losses.ofa import OFALoss
from mldr_kd_mm.models.losses.queue import QueueLoss
from mldr_kd_mm.models.losses.rkd import RKDLoss
from mldr_kd_mm.models.losses.rsd import RSDLoss

__all__ = [
    'CCLoss',
    'CRDLoss',
    'DFRALoss',
    'DISTLoss',
    'DKDLoss',
    'FitNetLoss',
    'HCDLoss',
    'HardKDLoss',
    'InfoNCELoss',
    'KDLoss',
    'LogitStandardizationLoss',
    'OFALoss',
    'QueueLoss',
    'RKDLoss',
    'RSDLoss',
]

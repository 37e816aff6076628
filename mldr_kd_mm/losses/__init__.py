"""The losses that compare a student's outputs with a teacher's, one file a method."""

from mldr_kd_mm.losses.cc import CCLoss
from mldr_kd_mm.losses.crd import CRDLoss
from mldr_kd_mm.losses.dfra import DFRALoss
from mldr_kd_mm.losses.dist import DISTLoss
from mldr_kd_mm.losses.dkd import DKDLoss
from mldr_kd_mm.losses.fitnet import FitNetLoss
from mldr_kd_mm.losses.kd import KDLoss
from mldr_kd_mm.losses.logit_standardization import LogitStandardizationLoss
from mldr_kd_mm.losses.ofa import OFALoss
from mldr_kd_mm.losses.rkd import RKDLoss
from mldr_kd_mm.losses.rsd import RSDLoss

__all__ = [
    'CCLoss',
    'CRDLoss',
    'DFRALoss',
    'DISTLoss',
    'DKDLoss',
    'FitNetLoss',
    'KDLoss',
    'LogitStandardizationLoss',
    'OFALoss',
    'RKDLoss',
    'RSDLoss',
]

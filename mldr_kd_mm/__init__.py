"""mldr_kd_mm: distil one kind of image network into another, inside mmengine's Runner."""

# ruff: noqa: E402
import warnings

# Classification needs none of mmcv's compiled operations, the lack of which it warns about.
warnings.filterwarnings('ignore', message='Fail to import ``MultiScaleDeformableAttention``')

from mldr_kd_mm import backbones, datasets, hooks, strategies
from mldr_kd_mm.config_files import config_path, list_configs
from mldr_kd_mm.distiller import Distiller
from mldr_kd_mm.errors import ConfigError
from mldr_kd_mm.losses import (
    CCLoss,
    CRDLoss,
    DFRALoss,
    DISTLoss,
    DKDLoss,
    FitNetLoss,
    KDLoss,
    LogitStandardizationLoss,
    OFALoss,
    RKDLoss,
    RSDLoss,
)
from mldr_kd_mm.necks import MSDFNeck
from mldr_kd_mm.recorder import FeatureRecorder
from mldr_kd_mm.version import __version__

__all__ = [
    'CCLoss',
    'CRDLoss',
    'ConfigError',
    'DFRALoss',
    'DISTLoss',
    'DKDLoss',
    'Distiller',
    'FeatureRecorder',
    'FitNetLoss',
    'KDLoss',
    'LogitStandardizationLoss',
    'MSDFNeck',
    'OFALoss',
    'RKDLoss',
    'RSDLoss',
    '__version__',
    'backbones',
    'config_path',
    'datasets',
    'hooks',
    'list_configs',
    'strategies',
]

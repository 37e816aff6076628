"""mldr_kd_mm: distil one kind of image network into another, inside mmengine's Runner."""

# ruff: noqa: E402
import warnings
from contextlib import redirect_stdout
from io import StringIO

# Classification needs none of mmcv's compiled operations, the lack of which it warns about.
warnings.filterwarnings('ignore', message='Fail to import ``MultiScaleDeformableAttention``')

# OneDL's package prints a line where its optional data sets are missing.
with redirect_stdout(StringIO()):
    import mmpretrain.datasets  # noqa: F401

from mldr_kd_mm import datasets, engine, models
from mldr_kd_mm.apis.configs import config_path, list_configs
from mldr_kd_mm.apis.distill import Distilled, distill, distill_config
from mldr_kd_mm.models.distillers.distiller import Distiller
from mldr_kd_mm.models.losses import (
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
from mldr_kd_mm.models.necks import MSDFNeck
from mldr_kd_mm.models.taps.recorder import FeatureRecorder
from mldr_kd_mm.utils.errors import ConfigError
from mldr_kd_mm.version import __version__

__all__ = [
    'CCLoss',
    'CRDLoss',
    'ConfigError',
    'DFRALoss',
    'DISTLoss',
    'DKDLoss',
    'Distilled',
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
    'config_path',
    'datasets',
    'distill',
    'distill_config',
    'engine',
    'list_configs',
    'models',
]

"""The package's public names; importing them registers all of its modules."""

import warnings
from contextlib import redirect_stdout
from io import StringIO

# Classification does not use mmcv's compiled operations; mmcv warns where they are missing.
warnings.filterwarnings('ignore', message='Fail to import ``MultiScaleDeformableAttention``')

# OneDL's mmpretrain prints a line when its optional data sets are missing.
with redirect_stdout(StringIO()):
    import mmpretrain.datasets  # noqa: F401

# ruff: noqa: E402
from mldr_kd_mm.apis.configs import base_fields, config_path, list_configs
from mldr_kd_mm.apis.distill import Distilled, distill, distill_config
from mldr_kd_mm.apis.predict import Prediction, predict
from mldr_kd_mm.apis.probe import Probed, probe
from mldr_kd_mm.models import losses
from mldr_kd_mm.models.distillers.distiller import Distiller
from mldr_kd_mm.models.losses import *  # noqa: F403
from mldr_kd_mm.models.necks import MSDFNeck
from mldr_kd_mm.models.taps.recorder import FeatureRecorder
from mldr_kd_mm.utils.errors import ConfigError

__all__ = [
    'ConfigError',
    'Distilled',
    'Distiller',
    'FeatureRecorder',
    'MSDFNeck',
    'Prediction',
    'Probed',
    'base_fields',
    'config_path',
    'distill',
    'distill_config',
    'list_configs',
    'predict',
    'probe',
    *losses.__all__,
]

"""Hooks for mmengine's Runner."""

from mldr_kd_mm.engine.hooks.adaptive_clip import AdaptiveClipHook
from mldr_kd_mm.engine.hooks.broadcast_buffers import BroadcastBuffersHook
from mldr_kd_mm.engine.hooks.chance import ChanceHook
from mldr_kd_mm.engine.hooks.checkpoint import AtomicCheckpointHook
from mldr_kd_mm.engine.hooks.data_check import DataCheckHook
from mldr_kd_mm.engine.hooks.exact_resume import ExactResumeHook
from mldr_kd_mm.engine.hooks.figures import FigureHook
from mldr_kd_mm.engine.hooks.load_weights import LoadWeightsHook
from mldr_kd_mm.engine.hooks.non_finite import NonFiniteHook
from mldr_kd_mm.engine.hooks.progress import ProgressHook
from mldr_kd_mm.engine.hooks.quantization_aware import QuantizationAwareHook
from mldr_kd_mm.engine.hooks.runtime_info import DeferredRuntimeInfoHook
from mldr_kd_mm.engine.hooks.stop_distill import StopDistillHook
from mldr_kd_mm.engine.hooks.stop_signal import StopSignalHook
from mldr_kd_mm.engine.hooks.teacher_accuracy import TeacherAccuracyHook
from mldr_kd_mm.engine.hooks.teacher_cache import TeacherCacheHook

__all__ = [
    'AdaptiveClipHook',
    'AtomicCheckpointHook',
    'BroadcastBuffersHook',
    'ChanceHook',
    'DataCheckHook',
    'DeferredRuntimeInfoHook',
    'ExactResumeHook',
    'FigureHook',
    'LoadWeightsHook',
    'NonFiniteHook',
    'ProgressHook',
    'QuantizationAwareHook',
    'StopDistillHook',
    'StopSignalHook',
    'TeacherAccuracyHook',
    'TeacherCacheHook',
]

"""Hooks that mmengine's Runner lacks."""

from mldr_kd_mm.hooks.broadcast_buffers import BroadcastBuffersHook
from mldr_kd_mm.hooks.checkpoint import AtomicCheckpointHook
from mldr_kd_mm.hooks.exact_resume import ExactResumeHook
from mldr_kd_mm.hooks.figures import FigureHook
from mldr_kd_mm.hooks.non_finite import NonFiniteHook
from mldr_kd_mm.hooks.progress import ProgressHook
from mldr_kd_mm.hooks.stop_signal import StopSignalHook
from mldr_kd_mm.hooks.teacher_accuracy import TeacherAccuracyHook
from mldr_kd_mm.hooks.teacher_cache import TeacherCacheHook

__all__ = [
    'AtomicCheckpointHook',
    'BroadcastBuffersHook',
    'ExactResumeHook',
    'FigureHook',
    'NonFiniteHook',
    'ProgressHook',
    'StopSignalHook',
    'TeacherAccuracyHook',
    'TeacherCacheHook',
]

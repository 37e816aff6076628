"""Hooks that mmengine's Runner lacks."""

from mldr_kd_mm.hooks.teacher_accuracy import TeacherAccuracyHook
from mldr_kd_mm.hooks.teacher_cache import TeacherCacheHook

__all__ = ['TeacherAccuracyHook', 'TeacherCacheHook']

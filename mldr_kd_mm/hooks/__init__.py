"""Hooks that mmengine's Runner lacks."""

from mldr_kd_mm.hooks.teacher_accuracy import TeacherAccuracyHook

__all__ = ['TeacherAccuracyHook']

"""Necks turn a student's stage features into logits that a loss can compare."""

from mldr_kd_mm.models.necks.msdf import MSDFNeck, MSDFOutput

__all__ = ['MSDFNeck', 'MSDFOutput']

"""Necks: logits from the stages of a student, for the losses to compare."""

from mldr_kd_mm.models.necks.msdf import MSDFNeck, MSDFOutput

__all__ = ['MSDFNeck', 'MSDFOutput']

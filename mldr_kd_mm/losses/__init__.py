"""The losses that compare a student's outputs with a teacher's, one file a method."""

from mldr_kd_mm.losses.dfra import DFRALoss

__all__ = ['DFRALoss']

"""Models: the Distiller, its taps, losses, necks and backbones."""

from mldr_kd_mm.models import backbones, data_preprocessor

__all__ = ['backbones', 'data_preprocessor']

"""A data set of drawn shapes, to distil on."""

# Also what lets mmengine read 'mldr_kd_mm::…': a config of this project is read after this import.
import mldr_kd_mm  # noqa: F401
from shapes_kd.shapes import Shapes

__all__ = ['Shapes']

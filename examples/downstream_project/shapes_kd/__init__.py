"""A data set of drawn shapes."""

# This import also lets mmengine resolve 'mldr_kd_mm::…' in configs that are read after it.
import mldr_kd_mm  # noqa: F401
from shapes_kd.shapes import Shapes

__all__ = ['Shapes']

"""How a run starts and what happens around its steps."""

from mldr_kd_mm.engine import hooks, strategies

__all__ = ['hooks', 'strategies']

"""Start of a run, and hooks for its steps."""

from mldr_kd_mm.engine import hooks, strategies

__all__ = ['hooks', 'strategies']

"""Start of a run, and hooks for its steps."""

from mldr_kd_mm.engine import hooks, knn_loop, strategies

__all__ = ['hooks', 'knn_loop', 'strategies']

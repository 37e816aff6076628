"""MLDR-KD with weight 0.1 for all heads, which emphasises the student's own loss."""

_base_ = 'mldr.py'

method = _base_.method
method.losses[0].weight = 0.1

"""MLDR-KD at temperature 4 instead of 1."""

_base_ = 'mldr.py'

method = _base_.method
method.losses[0].loss.temperature = 4.0

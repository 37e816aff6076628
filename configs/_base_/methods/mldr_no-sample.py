"""Ablation of MLDR-KD: without the sample relation."""

_base_ = 'mldr.py'

method = _base_.method
method.losses[0].loss.sample_weight = 0.0

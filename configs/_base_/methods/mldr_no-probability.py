"""Ablation of MLDR-KD: without the probability term."""

_base_ = 'mldr.py'

method = _base_.method
method.losses[0].loss.alpha = 0.0

"""Ablation of MLDR-KD: the relations alone, without the probabilities."""

_base_ = 'mldr.py'

method = _base_.method
method.losses[0].loss.alpha = 0.0

"""Ablation of MLDR-KD: without the class relation."""

_base_ = 'mldr.py'

method = _base_.method
method.losses[0].loss.class_weight = 0.0

"""Ablation of MLDR-KD: equal weights for all stages in the fusion."""

_base_ = 'mldr.py'

method = _base_.method
method.neck.gate_dim = 0

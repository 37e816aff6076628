"""Ablation of MLDR-KD: all stages weigh the same in the fusion."""

_base_ = 'mldr.py'

method = _base_.method
method.neck.gate_dim = 0

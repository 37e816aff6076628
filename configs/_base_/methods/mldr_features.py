"""Ablation of MLDR-KD: DFRA on the stages' and the fused logits only."""

_base_ = 'mldr.py'

method = _base_.method
method.losses[0].student = ['stage_logits', 'fused_logits']

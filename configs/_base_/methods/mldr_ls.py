"""Beyond the paper: MLDR-KD on logits that are standardised per sample."""

_base_ = 'mldr.py'

method = _base_.method
method.losses[0].loss.standardize = True

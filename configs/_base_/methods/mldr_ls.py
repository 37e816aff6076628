"""Beyond the paper: MLDR-KD, the logits of each sample standardised before they are related."""

_base_ = 'mldr.py'

method = _base_.method
method.losses[0].loss.standardize = True

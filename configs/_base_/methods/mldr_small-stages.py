"""MLDR-KD with weight 0.1 for each stage and the fusion, as OFA's authors weight a CNN's stages."""

_base_ = 'mldr.py'

method = _base_.method
method.losses[0].weight = [1.0, 0.1, 0.1]

"""MLDR-KD with weight 0.1 for each stage and the fusion, as OFA's authors weight a CNN's stages."""

_base_ = 'mldr.py'

method = _base_.method
method.losses[0].weight = [1.0, 0.1, 0.1]

search_space = {
    '_delete_': True,
    'model.losses.0.weight.0': dict(low=0.03, high=3.0, log=True),
    'model.losses.0.weight.1': dict(low=0.01, high=1.0, log=True),
    'model.losses.0.weight.2': dict(low=0.01, high=1.0, log=True),
}

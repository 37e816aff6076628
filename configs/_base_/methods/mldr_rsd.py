"""Beyond the paper: MLDR-KD plus RSD's loss on the penultimate features."""

_base_ = 'mldr.py'

method = _base_.method
method.losses = [
    *method.losses,
    dict(
        loss=dict(type='RSDLoss', kappa=0.01),
        student='feature',
        teacher='feature',
        weight=0.1,
        name='rsd',
    ),
]

search_space = {
    'model.losses.1.weight': dict(low=0.01, high=1.0, log=True),
}

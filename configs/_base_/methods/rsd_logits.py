"""RSD's loss on the final and the four stages' logits, in place of OFA's terms.

The weight is that of RSD on features.
"""

_base_ = 'ofa.py'

method = _base_.method
method.losses = [
    dict(
        loss=dict(type='RSDLoss', kappa=0.01, decoupler=False),
        student=['logits', 'stage_logits'],
        teacher='logits',
        weight=0.1,
        name='rsd',
    )
]

search_space = {
    '_delete_': True,
    'model.losses.0.weight': dict(low=0.01, high=1.0, log=True),
    'model.losses.0.loss.kappa': dict(low=0.001, high=0.1, log=True),
}

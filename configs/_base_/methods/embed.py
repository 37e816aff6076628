"""Embed: RSD on the penultimate features, and their relations to a queue of the teacher's.

It needs neither logits nor labels: --method embed removes the heads of teacher and student, and
validates the kNN accuracy (docs/unlabeled.md).
"""

has_head = False

method = dict(
    losses=[
        dict(
            loss=dict(type='RSDLoss', kappa=0.01),
            student='feature',
            teacher='feature',
            weight=0.1,
            name='rsd',
        ),
        dict(
            loss=dict(type='QueueLoss', size=8192, temperature=0.07),
            student='feature',
            teacher='feature',
            weight=1.0,
            name='queue',
        ),
    ]
)

search_space = {
    'model.losses.0.weight': dict(low=0.01, high=1.0, log=True),
    'model.losses.1.weight': dict(low=0.1, high=10.0, log=True),
}

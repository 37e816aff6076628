"""RSD: correlations of the penultimate features over a batch; no logits."""

method = dict(
    losses=[
        dict(
            loss=dict(type='RSDLoss', kappa=0.01),
            student='feature',
            teacher='feature',
            weight=0.1,
            name='rsd',
        )
    ]
)

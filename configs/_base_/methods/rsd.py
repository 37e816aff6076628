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

search_space = {
    'model.losses.0.weight': dict(low=0.01, high=1.0, log=True),
    'model.losses.0.loss.kappa': dict(low=0.001, high=0.1, log=True),
}

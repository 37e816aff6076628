"""CC: correlation congruence of the penultimate features."""

method = dict(
    losses=[
        dict(
            loss=dict(type='CCLoss', dim=128),
            student='feature',
            teacher='feature',
            weight=0.02,
            name='cc',
        )
    ]
)

search_space = {
    'model.losses.0.weight': dict(low=0.002, high=0.2, log=True),
}

"""RKD: distances and angles among the penultimate features of a batch."""

method = dict(
    losses=[
        dict(
            loss=dict(type='RKDLoss', distance_weight=25.0, angle_weight=50.0),
            student='feature',
            teacher='feature',
            weight=1.0,
            name='rkd',
        )
    ]
)

search_space = {
    'model.losses.0.weight': dict(low=0.1, high=10.0, log=True),
}

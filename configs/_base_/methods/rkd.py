"""RKD: distances and angles among the penultimate features of a batch."""

method = dict(
    losses=[
        dict(
            loss=dict(type='RKDLoss', distance_weight=25.0, angle_weight=50.0),
            student='feature',
            teacher='feature',
            name='rkd',
        )
    ]
)

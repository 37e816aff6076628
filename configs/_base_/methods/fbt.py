"""FBT without its fusion network: OFA's loss on the final logits, InfoNCE on the features."""

method = dict(
    losses=[
        dict(
            loss=dict(type='OFALoss', eps=1.0),
            student='logits',
            teacher='logits',
            weight=1.0,
            name='ofa',
        ),
        dict(
            loss=dict(type='InfoNCELoss', temperature=0.07, dim=128),
            student='feature',
            teacher='feature',
            weight=1.0,
            name='infonce',
        ),
    ]
)

search_space = {
    'model.losses.0.weight': dict(low=0.1, high=10.0, log=True),
    'model.losses.1.weight': dict(low=0.1, high=10.0, log=True),
}

"""DKD: target and other classes separately, on the final logits, as in OFA-KD's tables."""

method = dict(
    losses=[
        dict(
            loss=dict(type='DKDLoss', alpha=1.0, beta=2.0, temperature=1.0),
            weight=1.0,
            name='dkd',
        )
    ]
)

search_space = {
    'model.losses.0.weight': dict(low=0.1, high=10.0, log=True),
    'model.losses.0.loss.beta': dict(low=0.5, high=8.0, log=True),
}

"""DIST: correlations of the probabilities of the final logits, as in OFA-KD's tables."""

method = dict(
    losses=[
        dict(
            loss=dict(type='DISTLoss', beta=1.0, gamma=1.0, temperature=1.0),
            weight=1.0,
            name='dist',
        )
    ]
)

search_space = {
    'model.losses.0.weight': dict(low=0.1, high=10.0, log=True),
    'model.losses.0.loss.temperature': dict(low=1.0, high=8.0, log=True),
}

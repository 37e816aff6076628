"""DIST: correlations of the probabilities of the final logits, as in OFA-KD's tables."""

method = dict(
    losses=[dict(loss=dict(type='DISTLoss', beta=1.0, gamma=1.0, temperature=1.0), name='dist')]
)

"""KD: the softened probabilities of the final logits, at temperature 1 as in OFA-KD's tables."""

method = dict(losses=[dict(loss=dict(type='KDLoss', temperature=1.0), name='kd')])

"""DKD: target and other classes separately, on the final logits, as in OFA-KD's tables."""

method = dict(
    losses=[dict(loss=dict(type='DKDLoss', alpha=1.0, beta=2.0, temperature=1.0), name='dkd')]
)

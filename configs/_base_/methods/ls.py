"""LS: KD of standardised logits, at temperature 2."""

method = dict(losses=[dict(loss=dict(type='LogitStandardizationLoss', temperature=2.0), name='ls')])

"""Ablation of MLDR-KD: DFRA on the final logits only, without stages and fusion."""

method = dict(
    losses=[
        dict(loss=dict(type='DFRALoss', temperature=1.0, alpha=2.0, max_relation=1.0), name='dfra')
    ]
)

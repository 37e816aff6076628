"""Ablation of MLDR-KD: DFRA on the final logits only, without stages and fusion."""

method = dict(
    losses=[
        dict(
            loss=dict(type='DFRALoss', temperature=1.0, alpha=2.0, max_relation=4.0),
            weight=1.0,
            name='dfra',
        )
    ]
)

search_space = {
    'model.losses.0.weight': dict(low=0.03, high=3.0, log=True),
    'model.losses.0.loss.temperature': dict(low=1.0, high=8.0, log=True),
}

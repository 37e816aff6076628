"""LS: KD of standardised logits, at temperature 2."""

method = dict(
    losses=[
        dict(loss=dict(type='LogitStandardizationLoss', temperature=2.0), weight=1.0, name='ls')
    ]
)

search_space = {
    'model.losses.0.weight': dict(low=0.1, high=10.0, log=True),
    'model.losses.0.loss.temperature': dict(low=1.0, high=8.0, log=True),
}

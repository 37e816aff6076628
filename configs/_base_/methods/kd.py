"""KD: the softened probabilities of the final logits, at temperature 1 as in OFA-KD's tables."""

method = dict(losses=[dict(loss=dict(type='KDLoss', temperature=1.0), weight=1.0, name='kd')])

search_space = {
    'model.losses.0.weight': dict(low=0.1, high=10.0, log=True),
    'model.losses.0.loss.temperature': dict(low=1.0, high=8.0, log=True),
}

"""CRD: penultimate features against a memory bank; num_samples is the training set's size."""

method = dict(
    losses=[
        dict(
            # CIFAR-100 has 50,000 training images.
            loss=dict(type='CRDLoss', num_samples=50000, negatives=16384, temperature=0.07),
            student='feature',
            teacher='feature',
            weight=0.8,
            name='crd',
        )
    ]
)

search_space = {
    'model.losses.0.weight': dict(low=0.08, high=8.0, log=True),
    'model.losses.0.loss.temperature': dict(low=0.04, high=0.2, log=True),
}

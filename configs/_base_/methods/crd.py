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

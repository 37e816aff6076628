"""The CNN recipe of cnn_300e.py shortened to 40 epochs, for machines without a GPU."""

train_cfg = dict(by_epoch=True, max_epochs=40, val_interval=5)
val_cfg = dict()
test_cfg = dict()

# Weight decay is on all parameters; no gradient is clipped.
optim_wrapper = dict(
    optimizer=dict(type='SGD', lr=0.05, momentum=0.9, nesterov=True, weight_decay=2e-3)
)

# From 1e-4 up to 0.05 at epoch 3, then a cosine down to 1e-3 in the last epoch.
param_scheduler = [
    dict(type='LinearLR', start_factor=1e-4 / 0.05, by_epoch=True, begin=0, end=4),
    dict(type='CosineAnnealingLR', T_max=40 - 3 - 1, eta_min=1e-3, by_epoch=True, begin=3, end=40),
]

auto_scale_lr = dict(base_batch_size=128)

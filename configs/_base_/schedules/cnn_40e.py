"""The CNN recipe, cnn_300e.py, shortened to 40 epochs for machines without a GPU."""

_base_ = 'cnn_300e.py'

train_cfg = dict(max_epochs=40, val_interval=5)

# Warm-up from 1e-4 to 0.05 at epoch 3, then cosine to 1e-3 in the last epoch.
param_scheduler = [
    dict(type='LinearLR', start_factor=1e-4 / 0.05, by_epoch=True, begin=0, end=4),
    dict(type='CosineAnnealingLR', T_max=40 - 3 - 1, eta_min=1e-3, by_epoch=True, begin=3, end=40),
]

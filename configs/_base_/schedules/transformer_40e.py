"""The recipe transformer_300e.py shortened to 40 epochs for machines without a GPU."""

_base_ = 'transformer_300e.py'

train_cfg = dict(max_epochs=40, val_interval=5)

# Warm-up from a thousandth to the full rate at epoch 5, then cosine to 1e-5 in the last epoch.
param_scheduler = [
    dict(type='LinearLR', start_factor=1e-3, by_epoch=True, begin=0, end=6),
    dict(type='CosineAnnealingLR', T_max=40 - 5 - 1, eta_min=1e-5, by_epoch=True, begin=5, end=40),
]

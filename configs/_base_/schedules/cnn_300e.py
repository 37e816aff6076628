"""Recipe for CNN students (the authors' release): 300 epochs of SGD, 128 images per GPU."""

train_cfg = dict(by_epoch=True, max_epochs=300, val_interval=1)
val_cfg = dict()
test_cfg = dict()

# Weight decay on all parameters; no gradient clipping.
optim_wrapper = dict(
    optimizer=dict(type='SGD', lr=0.05, momentum=0.9, nesterov=True, weight_decay=2e-3)
)

# Warm-up from 1e-4 to 0.05 at epoch 3, then cosine to 1e-3 in the last epoch.
param_scheduler = [
    dict(type='LinearLR', start_factor=1e-4 / 0.05, by_epoch=True, begin=0, end=4),
    dict(
        type='CosineAnnealingLR', T_max=300 - 3 - 1, eta_min=1e-3, by_epoch=True, begin=3, end=300
    ),
]

auto_scale_lr = dict(base_batch_size=128)

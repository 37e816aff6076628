"""Recipe for ViT and MLP models (OFA-KD): 300 epochs of AdamW, 128 images per GPU."""

train_cfg = dict(by_epoch=True, max_epochs=300, val_interval=1)
val_cfg = dict()
test_cfg = dict()

optim_wrapper = dict(
    optimizer=dict(type='AdamW', lr=5e-4, weight_decay=0.05),
    paramwise_cfg=dict(norm_decay_mult=0.0, bias_decay_mult=0.0, flat_decay_mult=0.0),
    clip_grad=dict(max_norm=5.0),
)

# Warm-up from 5e-7 to 5e-4 at epoch 20, then cosine to 1e-5 in the last epoch.
param_scheduler = [
    dict(type='LinearLR', start_factor=1e-3, by_epoch=True, begin=0, end=21),
    dict(
        type='CosineAnnealingLR', T_max=300 - 20 - 1, eta_min=1e-5, by_epoch=True, begin=20, end=300
    ),
]

auto_scale_lr = dict(base_batch_size=128)

"""DeiT's recipe on ImageNet-1K: 8 GPUs with 128 images each, learning rate 5e-4 per 512 images.

Like transformer_300e.py, with 5 epochs of warm-up and without gradient clipping.
"""

_base_ = 'transformer_300e.py'

optim_wrapper = dict(
    optimizer=dict(lr=5e-4 * 1024 / 512),
    paramwise_cfg=dict(
        custom_keys=dict(
            cls_token=dict(decay_mult=0.0),
            dist_token=dict(decay_mult=0.0),
            pos_embed=dict(decay_mult=0.0),
        )
    ),
    clip_grad=None,
)

# Warm-up from 1e-6 to 1e-3 at epoch 5, then cosine to 1e-5 in the last epoch.
param_scheduler = [
    dict(type='LinearLR', start_factor=1e-3, by_epoch=True, begin=0, end=6),
    dict(
        type='CosineAnnealingLR', T_max=300 - 5 - 1, eta_min=1e-5, by_epoch=True, begin=5, end=300
    ),
]

auto_scale_lr = dict(base_batch_size=8 * 128)

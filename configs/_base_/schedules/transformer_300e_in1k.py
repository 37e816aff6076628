"""Recipe for ViT and MLP students on ImageNet-1K (OFA-KD): 8 GPUs with 128 images each.

Like transformer_300e.py, with a lower final learning rate and averaged weights (EMA).
"""

_base_ = 'transformer_300e.py'

# Warm-up from 5e-7 to 5e-4 at epoch 20, then cosine to 1e-6 in the last epoch.
param_scheduler = [
    dict(type='LinearLR', start_factor=1e-3, by_epoch=True, begin=0, end=21),
    dict(
        type='CosineAnnealingLR', T_max=300 - 20 - 1, eta_min=1e-6, by_epoch=True, begin=20, end=300
    ),
]

# The averaged weights are validated; the decay is 0.99996 per step.
custom_hooks = [dict(type='EMAHook', momentum=1 - 0.99996)]

auto_scale_lr = dict(base_batch_size=8 * 128)

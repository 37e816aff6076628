"""The recipe for ViT and MLP students on ImageNet-1K (OFA-KD's): 8 GPUs with 128 images each.

That of transformer_300e.py, but it ends at a lower rate and averages the weights.
"""

_base_ = 'transformer_300e.py'

# From 5e-7 up to 5e-4 at epoch 20, then a cosine down to 1e-6 in the last epoch.
param_scheduler = [
    dict(type='LinearLR', start_factor=1e-3, by_epoch=True, begin=0, end=21),
    dict(
        type='CosineAnnealingLR', T_max=300 - 20 - 1, eta_min=1e-6, by_epoch=True, begin=20, end=300
    ),
]

# The averaged weights are those that are validated, a decay of 0.99996 a step.
custom_hooks = [dict(type='EMAHook', momentum=1 - 0.99996)]

auto_scale_lr = dict(base_batch_size=8 * 128)

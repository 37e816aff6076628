"""Vim-T (patch 16, 224 px) for 100 classes, trained with mixup and cutmix: 7.0 M parameters."""

vim_tiny = dict(
    type='VisionMamba',
    img_size=224,
    patch_size=16,
    embed_dim=192,
    depth=24,
    num_classes=100,
    loss=dict(type='LabelSmoothLoss', label_smooth_val=0.1, mode='original'),
    train_cfg=dict(augments=[dict(type='Mixup', alpha=0.8), dict(type='CutMix', alpha=1.0)]),
)

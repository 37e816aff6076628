"""Vim-S (patch 16, 224 px) for 100 classes: 25.5 M parameters."""

vim_small = dict(
    type='VisionMamba',
    img_size=224,
    patch_size=16,
    embed_dim=384,
    depth=24,
    num_classes=100,
    loss=dict(type='LabelSmoothLoss', label_smooth_val=0.1, mode='original'),
)

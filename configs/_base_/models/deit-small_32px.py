"""A small DeiT (patch 4, 32 px, width 96, 6 blocks) for 100 classes: 0.7 M parameters."""

_base_ = 'deit-small.py'

deit_small = dict(
    backbone=dict(
        arch=dict(
            _delete_=True, embed_dims=96, num_layers=6, num_heads=3, feedforward_channels=384
        ),
        img_size=32,
        patch_size=4,
    ),
    head=dict(in_channels=96),
)

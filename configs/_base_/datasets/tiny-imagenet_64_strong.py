"""Tiny-ImageNet at its own 64 px with the Transformer recipe's augmentation (OFA-KD)."""

_base_ = ['tiny-imagenet_64.py', 'strong_augmentation.py']

train_pipeline = [
    dict(type='LoadImageFromFile'),
    dict(type='RandomResizedCropFlip', scale=64, crop_ratio_range=(0.08, 1.0), flip_prob=0.5),
    *_base_.strong_augmentation,
    dict(type='PackPlanes'),
]
train_dataloader = dict(dataset=dict(pipeline=train_pipeline))

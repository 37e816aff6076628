"""Tiny-ImageNet at its own 64 px."""

_base_ = 'tiny-imagenet_224.py'

train_pipeline = [
    dict(type='LoadImageFromFile'),
    # One eighth of the image, like the usual 4 px of CIFAR's 32.
    dict(type='RandomCrop', crop_size=64, padding=8),
    dict(type='RandomFlip', prob=0.5, direction='horizontal'),
    dict(type='PackInputs'),
]
test_pipeline = [dict(type='LoadImageFromFile'), dict(type='PackInputs')]

train_dataloader = dict(dataset=dict(pipeline=train_pipeline))
val_dataloader = dict(dataset=dict(pipeline=test_pipeline))
test_dataloader = val_dataloader

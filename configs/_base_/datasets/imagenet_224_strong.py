"""ImageNet-1K at 224 px with the Transformer recipe's augmentation (OFA-KD)."""

_base_ = ['imagenet_224.py', 'strong_augmentation.py']

train_pipeline = [
    dict(type='LoadImageFromFile'),
    dict(type='RandomResizedCropFlip', scale=224, crop_ratio_range=(0.08, 1.0), flip_prob=0.5),
    *_base_.strong_augmentation,
    dict(type='PackPlanes'),
]
train_dataloader = dict(dataset=dict(pipeline=train_pipeline))

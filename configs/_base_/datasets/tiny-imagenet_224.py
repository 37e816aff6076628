"""Tiny-ImageNet at 224 px with the CNN recipe's augmentation."""

# Tiny-ImageNet's statistics on [0, 1] in RGB order, times 255. The images are read as BGR.
data_preprocessor = dict(
    type='mldr_kd_mm.ViewDataPreprocessor',  # mixes images reproducibly
    num_classes=200,
    mean=[0.4802 * 255, 0.4481 * 255, 0.3975 * 255],
    std=[0.2770 * 255, 0.2691 * 255, 0.2821 * 255],
    to_rgb=True,
)

train_pipeline = [
    dict(type='LoadImageFromFile'),
    dict(type='RandomResizedCropFlip', scale=224, crop_ratio_range=(0.08, 1.0), flip_prob=0.5),
    dict(type='PackPlanes'),
]
test_pipeline = [
    dict(type='LoadImageFromFile'),
    dict(type='ResizeEdge', scale=256, edge='short', interpolation='bilinear'),
    dict(type='CenterCrop', crop_size=224),
    dict(type='PackInputs'),
]

train_dataloader = dict(
    batch_size=128,
    num_workers=8,
    dataset=dict(
        type='mldr_kd_mm.TinyImageNet',
        data_root='data/tiny-imagenet',  # the directory that holds tiny-imagenet-200/
        split='train',
        pipeline=train_pipeline,
    ),
    sampler=dict(type='ViewSampler', shuffle=True),
)
num_train_images = 100_000
val_dataloader = dict(
    batch_size=128,
    num_workers=8,
    dataset=dict(
        type='mldr_kd_mm.TinyImageNet',
        data_root='data/tiny-imagenet',
        split='val',
        pipeline=test_pipeline,
    ),
    sampler=dict(type='DefaultSampler', shuffle=False),
)
val_evaluator = dict(type='Accuracy', topk=(1, 5))
test_dataloader = val_dataloader
test_evaluator = val_evaluator

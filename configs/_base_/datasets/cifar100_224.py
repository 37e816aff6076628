"""CIFAR-100 at 224 px with the CNN recipe's augmentation (the authors' release)."""

# CIFAR-100's statistics on [0, 1], times 255. The images are already RGB.
data_preprocessor = dict(
    type='mldr_kd_mm.ViewDataPreprocessor',  # mixes images reproducibly
    num_classes=100,
    mean=[0.5071 * 255, 0.4865 * 255, 0.4409 * 255],
    std=[0.2673 * 255, 0.2564 * 255, 0.2762 * 255],
    to_rgb=False,
)

train_pipeline = [
    dict(type='RandomResizedCropFlip', scale=224, crop_ratio_range=(0.08, 1.0), flip_prob=0.5),
    dict(type='PackPlanes'),
]
test_pipeline = [
    dict(type='ResizeEdge', scale=256, edge='short', interpolation='bilinear'),
    dict(type='CenterCrop', crop_size=224),
    dict(type='PackInputs'),
]

train_dataloader = dict(
    batch_size=128,
    num_workers=8,
    dataset=dict(
        type='mldr_kd_mm.VerifiedCIFAR100',
        data_root='data/cifar100',  # the directory that holds cifar-100-python/
        split='train',
        pipeline=train_pipeline,
    ),
    sampler=dict(type='ViewSampler', shuffle=True),
)
val_dataloader = dict(
    batch_size=128,
    num_workers=8,
    dataset=dict(
        type='mldr_kd_mm.VerifiedCIFAR100',
        data_root='data/cifar100',
        split='test',
        pipeline=test_pipeline,
    ),
    sampler=dict(type='DefaultSampler', shuffle=False),
)
val_evaluator = dict(type='Accuracy', topk=(1, 5))
test_dataloader = val_dataloader
test_evaluator = val_evaluator

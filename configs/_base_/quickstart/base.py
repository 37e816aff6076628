"""Shared by the quickstart's configs: the digits at 16 px, both models, the runtime."""

_base_ = [
    '../models/deit-small_32px.py',
    '../models/mobilenet-v2_32px.py',
    '../default_runtime.py',
]

# A ViT of width 64 with 4 blocks: 0.2 M parameters. Labels are not smoothed: a teacher trained on
# smoothed labels reveals less about class similarity.
deit_small = dict(
    backbone=dict(
        arch=dict(embed_dims=64, num_layers=4, num_heads=4, feedforward_channels=256),
        img_size=16,
        patch_size=4,
        drop_path_rate=0.0,
    ),
    head=dict(num_classes=10, in_channels=64, loss=dict(_delete_=True, type='CrossEntropyLoss')),
)
# Quarter-width MobileNetV2: 0.25 M parameters.
mobilenet_v2 = dict(backbone=dict(widen_factor=0.25), head=dict(num_classes=10))

# Mean and standard deviation of the training images.
data_preprocessor = dict(num_classes=10, mean=[78.0] * 3, std=[82.6] * 3, to_rgb=False)

# No flips: a mirrored digit is not a digit.
train_pipeline = [
    dict(type='NumpyToPIL'),
    dict(
        type='torchvision/RandomAffine',
        degrees=10,
        translate=(0.1, 0.1),
        scale=(0.9, 1.1),
        interpolation='bilinear',
    ),
    dict(type='PILToNumpy'),
    dict(type='PackInputs'),
]
test_pipeline = [dict(type='PackInputs')]

train_dataloader = dict(
    batch_size=50,
    num_workers=0,
    dataset=dict(type='mldr_kd_mm.Digits', split='train', size=16, pipeline=train_pipeline),
    sampler=dict(type='ViewSampler', shuffle=True),
)
val_dataloader = dict(
    batch_size=200,
    num_workers=0,
    dataset=dict(type='mldr_kd_mm.Digits', split='test', size=16, pipeline=test_pipeline),
    sampler=dict(type='DefaultSampler', shuffle=False),
)
val_evaluator = dict(type='Accuracy', topk=1)
test_dataloader = val_dataloader
test_evaluator = val_evaluator

# Keep only the last checkpoint.
default_hooks = dict(checkpoint=dict(interval=-1, save_best=None))

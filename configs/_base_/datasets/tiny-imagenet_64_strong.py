"""Tiny-ImageNet at its own 64 px with the Transformer recipe's augmentation (OFA-KD).

The recipe also lists a colour jitter of 0.4, which timm leaves out where RandAugment is on. mixup
and cutmix belong to the model: see ``train_cfg`` of the students and of the teachers' configs.
"""

_base_ = 'tiny-imagenet_64.py'

train_pipeline = [
    dict(type='LoadImageFromFile'),
    dict(type='RandomResizedCrop', scale=64, crop_ratio_range=(0.08, 1.0)),
    dict(type='RandomFlip', prob=0.5, direction='horizontal'),
    # timm's rand-m9-mstd0.5-inc1
    dict(
        type='RandAugment',
        policies='timm_increasing',
        num_policies=2,
        total_level=10,
        magnitude_level=9,
        magnitude_std=0.5,
    ),
    dict(type='RandomErasing', erase_prob=0.25, mode='rand', min_area_ratio=0.02),
    dict(type='PackInputs'),
]
train_dataloader = dict(dataset=dict(pipeline=train_pipeline))

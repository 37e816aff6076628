"""What the Transformer recipe (OFA-KD) does to an image after crop and flip.

It also lists a colour jitter of 0.4, which timm leaves out where RandAugment is on. mixup and
cutmix belong to the model: see ``train_cfg`` of the students and of the teachers' configs.
"""

strong_augmentation = [
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
]

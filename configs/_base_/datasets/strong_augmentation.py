"""Augmentation of the Transformer recipe (OFA-KD) after crop and flip.

The recipe also lists a colour jitter of 0.4, which timm disables when RandAugment is on. mixup and
cutmix belong to the model: see ``train_cfg`` in the configs of students and teachers.
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

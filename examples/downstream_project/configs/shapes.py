"""The project's data: an ordinary data base, like those in mldr_kd_mm's configs/_base_/datasets."""

# For tools that do not import this project, such as those of mldr_kd_mm.
custom_imports = dict(imports=['shapes_kd'])

data_preprocessor = dict(
    type='mldr_kd_mm.ViewDataPreprocessor',
    num_classes=4,
    mean=[127.5] * 3,
    std=[64.0] * 3,
    to_rgb=False,
)

train_dataloader = dict(
    batch_size=32,
    num_workers=0,
    dataset=dict(
        type='Shapes',
        num_images=512,
        pipeline=[
            dict(
                type='RandomResizedCropFlip', scale=64, crop_ratio_range=(0.5, 1.0), flip_prob=0.5
            ),
            dict(type='PackPlanes'),
        ],
    ),
    sampler=dict(type='ViewSampler', shuffle=True),
)
val_dataloader = dict(
    batch_size=32,
    num_workers=0,
    dataset=dict(type='Shapes', num_images=128, seed=1, pipeline=[dict(type='PackInputs')]),
    sampler=dict(type='DefaultSampler', shuffle=False),
)
val_evaluator = dict(type='Accuracy', topk=1)
test_dataloader = val_dataloader
test_evaluator = val_evaluator

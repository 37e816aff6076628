"""Settings that this project's configs share, under names that the inherited configs do not use."""

# For tools that do not import this project, such as those of mldr_kd_mm.
custom_imports = dict(imports=['shapes_kd'])

shapes = dict(
    num_classes=4,
    train=dict(
        type='Shapes',
        num_images=512,
        pipeline=[
            dict(
                type='RandomResizedCropFlip', scale=64, crop_ratio_range=(0.5, 1.0), flip_prob=0.5
            ),
            dict(type='PackPlanes'),
        ],
    ),
    val=dict(type='Shapes', num_images=128, seed=1, pipeline=[dict(type='PackInputs')]),
    # DeiT-tiny instead of DeiT-small.
    teacher=dict(
        backbone=dict(arch='deit-tiny', img_size=64),
        head=dict(num_classes=4, in_channels=192, topk=1),
    ),
)

"""Swin-T teaches ResMLP-S12 on Tiny-ImageNet at 224 px."""

_base_ = [
    '../models/swin-tiny.py',
    '../models/resmlp-s12.py',
    '../datasets/tiny-imagenet_224_strong.py',
    '../schedules/transformer_300e.py',
    '../default_runtime.py',
]

model = dict(
    type='Distiller',
    teacher=dict(_base_.swin_tiny, num_classes=200),
    teacher_checkpoint='work_dirs/swin-tiny_tiny/epoch_300.pth',
    student=dict(_base_.resmlp_s12, num_classes=200),
    input_size=(3, 224, 224),
)

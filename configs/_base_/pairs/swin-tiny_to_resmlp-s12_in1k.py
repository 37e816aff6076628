"""Swin-T teaches ResMLP-S12 on ImageNet-1K at 224 px. Not trained by us."""

_base_ = [
    '../models/swin-tiny.py',
    '../models/resmlp-s12.py',
    '../datasets/imagenet_224_strong.py',
    '../schedules/transformer_300e_in1k.py',
    '../default_runtime.py',
]

model = dict(
    type='Distiller',
    teacher=dict(_base_.swin_tiny, num_classes=1000, pretrained=True),
    teacher_checkpoint=None,
    student=dict(_base_.resmlp_s12, num_classes=1000),
    input_size=(3, 224, 224),
)

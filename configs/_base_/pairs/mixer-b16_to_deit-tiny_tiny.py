"""Mixer-B/16 teaches DeiT-T on Tiny-ImageNet at 224 px."""

_base_ = [
    '../models/mixer-b16.py',
    '../models/deit-tiny.py',
    '../datasets/tiny-imagenet_224_strong.py',
    '../schedules/transformer_300e.py',
    '../default_runtime.py',
]

model = dict(
    type='Distiller',
    teacher=dict(_base_.mixer_b16, num_classes=200),
    teacher_checkpoint='work_dirs/mixer-b16_tiny/epoch_300.pth',
    student=dict(_base_.deit_tiny, num_classes=200),
    input_size=(3, 224, 224),
)

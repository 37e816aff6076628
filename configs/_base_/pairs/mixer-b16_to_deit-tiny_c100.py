"""Mixer-B/16 teaches DeiT-T on CIFAR-100 at 224 px."""

_base_ = [
    '../models/mixer-b16.py',
    '../models/deit-tiny.py',
    '../datasets/cifar100_224_strong.py',
    '../schedules/transformer_300e.py',
    '../default_runtime.py',
]

model = dict(
    type='Distiller',
    teacher=_base_.mixer_b16,
    teacher_checkpoint='work_dirs/mixer-b16_c100/epoch_300.pth',
    student=_base_.deit_tiny,
    input_size=(3, 224, 224),
)

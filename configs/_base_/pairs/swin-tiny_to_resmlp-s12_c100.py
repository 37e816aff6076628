"""Swin-T teaches ResMLP-S12 on CIFAR-100 at 224 px."""

_base_ = [
    '../models/swin-tiny.py',
    '../models/resmlp-s12.py',
    '../datasets/cifar100_224_strong.py',
    '../schedules/transformer_300e.py',
    '../default_runtime.py',
]

model = dict(
    type='Distiller',
    teacher=_base_.swin_tiny,
    teacher_checkpoint='work_dirs/swin-tiny_c100/epoch_300.pth',
    student=_base_.resmlp_s12,
    input_size=(3, 224, 224),
)

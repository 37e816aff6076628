"""ConvNeXt-T teaches Swin-P on CIFAR-100 at 224 px."""

_base_ = [
    '../models/convnext-tiny.py',
    '../models/swin-pico.py',
    '../datasets/cifar100_224_strong.py',
    '../schedules/transformer_300e.py',
    '../default_runtime.py',
]

model = dict(
    type='Distiller',
    teacher=_base_.convnext_tiny,
    teacher_checkpoint='work_dirs/convnext-tiny_c100/epoch_300.pth',
    student=_base_.swin_pico,
    input_size=(3, 224, 224),
)

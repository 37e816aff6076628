"""A small DeiT teaches MobileNetV2 of half width on CIFAR-100 at 32 px."""

_base_ = [
    '../models/deit-small_32px.py',
    '../models/mobilenet-v2_32px.py',
    '../datasets/cifar100_32.py',
    '../schedules/cnn_40e.py',
    '../default_runtime.py',
]

model = dict(
    type='Distiller',
    teacher=_base_.deit_small,
    teacher_checkpoint='work_dirs/deit-small_c100_32px/epoch_40.pth',
    student=_base_.mobilenet_v2,
    input_size=(3, 32, 32),
)

"""DeiT-small teaches MobileNetV2 on CIFAR-100 at 224 px."""

_base_ = [
    '../models/deit-small.py',
    '../models/mobilenet-v2.py',
    '../datasets/cifar100_224.py',
    '../schedules/cnn_300e.py',
    '../default_runtime.py',
]

model = dict(
    type='Distiller',
    teacher=_base_.deit_small,
    teacher_checkpoint='work_dirs/deit-small_c100/epoch_300.pth',
    student=_base_.mobilenet_v2,
    input_size=(3, 224, 224),
)

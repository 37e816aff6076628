"""Mixer-B/16 teaches ResNet18 on Tiny-ImageNet at 224 px."""

_base_ = [
    '../models/mixer-b16.py',
    '../models/resnet18.py',
    '../datasets/tiny-imagenet_224.py',
    '../schedules/cnn_300e.py',
    '../default_runtime.py',
]

model = dict(
    type='Distiller',
    teacher=dict(_base_.mixer_b16, num_classes=200),
    teacher_checkpoint='work_dirs/mixer-b16_tiny/epoch_300.pth',
    student=dict(_base_.resnet18, num_classes=200),
    input_size=(3, 224, 224),
)

"""Swin-T teaches ResNet18 on Tiny-ImageNet at 224 px."""

_base_ = [
    '../models/swin-tiny.py',
    '../models/resnet18.py',
    '../datasets/tiny-imagenet_224.py',
    '../schedules/cnn_300e.py',
    '../default_runtime.py',
]

model = dict(
    type='Distiller',
    teacher=dict(_base_.swin_tiny, num_classes=200),
    teacher_checkpoint='work_dirs/swin-tiny_tiny/epoch_300.pth',
    student=dict(_base_.resnet18, num_classes=200),
    input_size=(3, 224, 224),
)

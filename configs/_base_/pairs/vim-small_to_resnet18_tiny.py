"""Vim-S teaches ResNet18 on Tiny-ImageNet at 224 px."""

_base_ = [
    '../models/vim-small.py',
    '../models/resnet18.py',
    '../datasets/tiny-imagenet_224.py',
    '../schedules/cnn_300e.py',
    '../default_runtime.py',
]

model = dict(
    type='Distiller',
    teacher=dict(_base_.vim_small, num_classes=200),
    teacher_checkpoint='work_dirs/vim-small_tiny/epoch_300.pth',
    student=dict(_base_.resnet18, num_classes=200),
    input_size=(3, 224, 224),
)

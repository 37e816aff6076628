"""Vim-S teaches ResNet18 on CIFAR-100 at 224 px."""

_base_ = [
    '../models/vim-small.py',
    '../models/resnet18.py',
    '../datasets/cifar100_224.py',
    '../schedules/cnn_300e.py',
    '../default_runtime.py',
]

model = dict(
    type='Distiller',
    teacher=_base_.vim_small,
    teacher_checkpoint='work_dirs/vim-small_c100/epoch_300.pth',
    student=_base_.resnet18,
    input_size=(3, 224, 224),
)

"""ViT-L teaches ResNet101 on CIFAR-100 at 224 px."""

_base_ = [
    '../models/vit-large.py',
    '../models/resnet101.py',
    '../datasets/cifar100_224.py',
    '../schedules/cnn_300e.py',
    '../default_runtime.py',
]

model = dict(
    type='Distiller',
    teacher=_base_.vit_large,
    teacher_checkpoint='work_dirs/vit-large_c100/epoch_300.pth',
    student=_base_.resnet101,
    input_size=(3, 224, 224),
)

"""ViT-S of patch 8 teaches ResNet18 on Tiny-ImageNet at 64 px."""

_base_ = [
    '../models/vit-small_64px.py',
    '../models/resnet18_64px.py',
    '../datasets/tiny-imagenet_64.py',
    '../schedules/cnn_300e.py',
    '../default_runtime.py',
]

model = dict(
    type='Distiller',
    teacher=_base_.vit_small,
    teacher_checkpoint='work_dirs/vit-small_tiny_64px/epoch_300.pth',
    student=_base_.resnet18,
    input_size=(3, 64, 64),
)

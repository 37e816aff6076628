"""ViT-L teaches ResNet101 on Tiny-ImageNet at 224 px."""

_base_ = [
    '../models/vit-large.py',
    '../models/resnet101.py',
    '../datasets/tiny-imagenet_224.py',
    '../schedules/cnn_300e.py',
    '../default_runtime.py',
]

model = dict(
    type='Distiller',
    teacher=dict(_base_.vit_large, num_classes=200),
    teacher_checkpoint='work_dirs/vit-large_tiny/epoch_300.pth',
    student=dict(_base_.resnet101, num_classes=200),
    input_size=(3, 224, 224),
)

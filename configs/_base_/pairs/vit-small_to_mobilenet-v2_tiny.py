"""ViT-S teaches MobileNetV2 on Tiny-ImageNet at 224 px."""

_base_ = [
    '../models/vit-small.py',
    '../models/mobilenet-v2.py',
    '../datasets/tiny-imagenet_224.py',
    '../schedules/cnn_300e.py',
    '../default_runtime.py',
]

model = dict(
    type='Distiller',
    teacher=dict(_base_.vit_small, num_classes=200),
    teacher_checkpoint='work_dirs/vit-small_tiny/epoch_300.pth',
    student=dict(_base_.mobilenet_v2, head=dict(_base_.mobilenet_v2.head, num_classes=200)),
    input_size=(3, 224, 224),
)

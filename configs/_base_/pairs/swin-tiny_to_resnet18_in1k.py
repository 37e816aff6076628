"""Swin-T teaches ResNet18 on ImageNet-1K at 224 px. Not trained by us."""

_base_ = [
    '../models/swin-tiny.py',
    '../models/resnet18.py',
    '../datasets/imagenet_224.py',
    '../schedules/cnn_100e_in1k.py',
    '../default_runtime.py',
]

model = dict(
    type='Distiller',
    teacher=dict(_base_.swin_tiny, num_classes=1000, pretrained=True),
    teacher_checkpoint=None,
    student=dict(_base_.resnet18, num_classes=1000),
    input_size=(3, 224, 224),
)

train_dataloader = dict(batch_size=64)

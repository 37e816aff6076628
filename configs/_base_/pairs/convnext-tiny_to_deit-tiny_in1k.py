"""ConvNeXt-T teaches DeiT-T on ImageNet-1K at 224 px. Not trained by us."""

_base_ = [
    '../models/convnext-tiny.py',
    '../models/deit-tiny.py',
    '../datasets/imagenet_224_strong.py',
    '../schedules/transformer_300e_in1k.py',
    '../default_runtime.py',
]

model = dict(
    type='Distiller',
    teacher=dict(_base_.convnext_tiny, num_classes=1000, pretrained=True),
    teacher_checkpoint=None,
    student=dict(_base_.deit_tiny, num_classes=1000),
    input_size=(3, 224, 224),
)

"""ConvNeXt-T teaches Vim-T on Tiny-ImageNet at 224 px."""

_base_ = [
    '../models/convnext-tiny.py',
    '../models/vim-tiny.py',
    '../datasets/tiny-imagenet_224_strong.py',
    '../schedules/mamba_300e.py',
    '../default_runtime.py',
]

model = dict(
    type='Distiller',
    teacher=dict(_base_.convnext_tiny, num_classes=200),
    teacher_checkpoint='work_dirs/convnext-tiny_tiny/epoch_300.pth',
    student=dict(_base_.vim_tiny, num_classes=200),
    input_size=(3, 224, 224),
)

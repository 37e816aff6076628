"""Swin-T teaches Vim-T on Tiny-ImageNet at 224 px.

    bash tools/dist_train.sh configs/pairs/swin-tiny_to_vim-tiny_tinyimagenet.py 4 --method dist

Requires Tiny-ImageNet in data/tiny-imagenet, 4 GPUs and the teacher that
configs/teachers/swin-tiny_tinyimagenet.py trains.

--method takes the name of any file in configs/_base_/methods, or the path of your own.
"""

_base_ = [
    '../_base_/models/swin-tiny.py',
    '../_base_/models/vim-tiny.py',
    '../_base_/datasets/tiny-imagenet_224_strong.py',
    '../_base_/schedules/mamba_300e.py',
    '../_base_/default_runtime.py',
]

model = dict(
    type='Distiller',
    teacher=dict(_base_.swin_tiny, num_classes=200),
    teacher_checkpoint='work_dirs/swin-tiny_tinyimagenet/epoch_300.pth',
    student=dict(_base_.vim_tiny, num_classes=200),
    input_size=(3, 224, 224),
)

"""Swin-T teaches Vim-T on CIFAR-100 at 224 px.

    bash tools/dist_train.sh configs/pairs/swin-tiny_to_vim-tiny_c100.py 4 --method dist

Requires CIFAR-100 in data/cifar100 (downloaded if the network allows), 4 GPUs and the teacher that
configs/teachers/swin-tiny_c100.py trains.

--method takes the name of any file in configs/_base_/methods, or the path of your own.
"""

_base_ = [
    '../_base_/models/swin-tiny.py',
    '../_base_/models/vim-tiny.py',
    '../_base_/datasets/cifar100_224_strong.py',
    '../_base_/schedules/mamba_300e.py',
    '../_base_/default_runtime.py',
]

model = dict(
    type='Distiller',
    teacher=_base_.swin_tiny,
    teacher_checkpoint='work_dirs/swin-tiny_c100/epoch_300.pth',
    student=_base_.vim_tiny,
    input_size=(3, 224, 224),
)

"""MLDR-KD: Swin-T teaches Vim-T on CIFAR-100 at 224 px.

    bash tools/dist_train.sh configs/mldr/swin-tiny_to_vim-tiny_c100.py 4

Needs CIFAR-100 in data/cifar100 (downloaded where the network allows), 4 GPUs and the teacher,
which configs/teachers/swin-tiny_c100.py trains.
No numbers are published for this pair, as far as we know.
"""

_base_ = [
    '../_base_/models/swin-tiny.py',
    '../_base_/models/vim-tiny.py',
    '../_base_/datasets/cifar100_224_strong.py',
    '../_base_/schedules/mamba_300e.py',
    '../_base_/methods/mldr.py',
    '../_base_/default_runtime.py',
]

model = dict(
    type='Distiller',
    teacher=_base_.swin_tiny,
    teacher_checkpoint='work_dirs/swin-tiny_c100/epoch_300.pth',
    student=_base_.vim_tiny,
    input_size=(3, 224, 224),
)

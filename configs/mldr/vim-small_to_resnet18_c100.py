"""MLDR-KD: Vim-S teaches ResNet18 on CIFAR-100 at 224 px.

    bash tools/dist_train.sh configs/mldr/vim-small_to_resnet18_c100.py 4

Needs CIFAR-100 in data/cifar100 (downloaded where the network allows), 4 GPUs and the teacher,
which configs/teachers/vim-small_c100.py trains.
Published: teacher 87.89, student alone 74.01, MLDR-KD 80.23 (paper's code); not rerun by us.
"""

_base_ = [
    '../_base_/models/vim-small.py',
    '../_base_/models/resnet18.py',
    '../_base_/datasets/cifar100_224.py',
    '../_base_/schedules/cnn_300e.py',
    '../_base_/methods/mldr.py',
    '../_base_/default_runtime.py',
]

model = dict(
    type='Distiller',
    teacher=_base_.vim_small,
    teacher_checkpoint='work_dirs/vim-small_c100/epoch_300.pth',
    student=_base_.resnet18,
    input_size=(3, 224, 224),
)

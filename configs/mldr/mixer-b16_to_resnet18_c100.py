"""MLDR-KD: Mixer-B/16 teaches ResNet18 on CIFAR-100 at 224 px.

    bash tools/dist_train.sh configs/mldr/mixer-b16_to_resnet18_c100.py 4

Needs CIFAR-100 in data/cifar100 (downloaded where the network allows), 4 GPUs and the teacher,
which configs/teachers/mixer-b16_c100.py trains.
Published: teacher 87.29, student alone 74.01, MLDR-KD 80.79 (paper's code); not rerun by us.
"""

_base_ = [
    '../_base_/models/mixer-b16.py',
    '../_base_/models/resnet18.py',
    '../_base_/datasets/cifar100_224.py',
    '../_base_/schedules/cnn_300e.py',
    '../_base_/methods/mldr.py',
    '../_base_/default_runtime.py',
]

model = dict(
    type='Distiller',
    teacher=_base_.mixer_b16,
    teacher_checkpoint='work_dirs/mixer-b16_c100/epoch_300.pth',
    student=_base_.resnet18,
    input_size=(3, 224, 224),
)

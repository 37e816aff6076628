"""MLDR-KD: ViT-L teaches ResNet101 on CIFAR-100 at 224 px.

    bash tools/dist_train.sh configs/mldr/vit-large_to_resnet101_c100.py 4

Needs CIFAR-100 in data/cifar100 (downloaded where the network allows), 4 GPUs and the teacher,
which configs/teachers/vit-large_c100.py trains.
Published: teacher 94.99, student alone 78.41, MLDR-KD 80.14 (paper's code); not rerun by us.
"""

_base_ = [
    '../_base_/models/vit-large.py',
    '../_base_/models/resnet101.py',
    '../_base_/datasets/cifar100_224.py',
    '../_base_/schedules/cnn_300e.py',
    '../_base_/methods/mldr.py',
    '../_base_/default_runtime.py',
]

model = dict(
    type='Distiller',
    teacher=_base_.vit_large,
    teacher_checkpoint='work_dirs/vit-large_c100/epoch_300.pth',
    student=_base_.resnet101,
    input_size=(3, 224, 224),
)

"""MLDR-KD: ViT-S teaches ResNet18 on CIFAR-100 at 224 px.

    bash tools/dist_train.sh configs/mldr/vit-small_to_resnet18_c100.py 4

Needs CIFAR-100 in data/cifar100 (downloaded where the network allows), 4 GPUs and the teacher,
which configs/teachers/vit-small_c100.py trains.
Published: teacher 92.04, student alone 74.01, MLDR-KD 80.51 (paper's code); not rerun by us.
"""

_base_ = [
    '../_base_/models/vit-small.py',
    '../_base_/models/resnet18.py',
    '../_base_/datasets/cifar100_224.py',
    '../_base_/schedules/cnn_300e.py',
    '../_base_/methods/mldr.py',
    '../_base_/default_runtime.py',
]

model = dict(
    type='Distiller',
    teacher=_base_.vit_small,
    teacher_checkpoint='work_dirs/vit-small_c100/epoch_300.pth',
    student=_base_.resnet18,
    input_size=(3, 224, 224),
)

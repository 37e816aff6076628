"""MLDR-KD: ConvNeXt-T teaches DeiT-T on CIFAR-100 at 224 px.

    bash tools/dist_train.sh configs/mldr/convnext-tiny_to_deit-tiny_c100.py 4

Needs CIFAR-100 in data/cifar100 (downloaded where the network allows), 4 GPUs and the teacher,
which configs/teachers/convnext-tiny_c100.py trains.
Published: teacher 88.41, student alone 68.00, OFA-KD 75.76 (its paper, as others retell it),
MLDR-KD none; not rerun by us.
"""

_base_ = [
    '../_base_/models/convnext-tiny.py',
    '../_base_/models/deit-tiny.py',
    '../_base_/datasets/cifar100_224_strong.py',
    '../_base_/schedules/transformer_300e.py',
    '../_base_/methods/mldr.py',
    '../_base_/default_runtime.py',
]

model = dict(
    type='Distiller',
    teacher=_base_.convnext_tiny,
    teacher_checkpoint='work_dirs/convnext-tiny_c100/epoch_300.pth',
    student=_base_.deit_tiny,
    input_size=(3, 224, 224),
)

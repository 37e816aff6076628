"""MLDR-KD: Mixer-B/16 teaches DeiT-T on CIFAR-100 at 224 px.

    bash tools/dist_train.sh configs/mldr/mixer-b16_to_deit-tiny_c100.py 4

Needs CIFAR-100 in data/cifar100 (downloaded where the network allows), 4 GPUs and the teacher,
which configs/teachers/mixer-b16_c100.py trains.
Published: teacher 87.29, student alone 68.00, OFA-KD 73.90 (its paper, as others retell it),
MLDR-KD none; not rerun by us.
"""

_base_ = [
    '../_base_/models/mixer-b16.py',
    '../_base_/models/deit-tiny.py',
    '../_base_/datasets/cifar100_224_strong.py',
    '../_base_/schedules/transformer_300e.py',
    '../_base_/methods/mldr.py',
    '../_base_/default_runtime.py',
]

model = dict(
    type='Distiller',
    teacher=_base_.mixer_b16,
    teacher_checkpoint='work_dirs/mixer-b16_c100/epoch_300.pth',
    student=_base_.deit_tiny,
    input_size=(3, 224, 224),
)

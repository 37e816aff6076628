"""Mixer-B/16 teaches DeiT-T on CIFAR-100 at 224 px.

    bash tools/dist_train.sh configs/pairs/mixer-b16_to_deit-tiny_c100.py 4 --method dist

Requires CIFAR-100 in data/cifar100 (downloaded if the network allows), 4 GPUs and the teacher that
configs/teachers/mixer-b16_c100.py trains.

--method takes the name of any file in configs/_base_/methods, or the path of your own.
"""

_base_ = [
    '../_base_/models/mixer-b16.py',
    '../_base_/models/deit-tiny.py',
    '../_base_/datasets/cifar100_224_strong.py',
    '../_base_/schedules/transformer_300e.py',
    '../_base_/default_runtime.py',
]

model = dict(
    type='Distiller',
    teacher=_base_.mixer_b16,
    teacher_checkpoint='work_dirs/mixer-b16_c100/epoch_300.pth',
    student=_base_.deit_tiny,
    input_size=(3, 224, 224),
)

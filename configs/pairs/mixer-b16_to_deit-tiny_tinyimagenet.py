"""Mixer-B/16 teaches DeiT-T on Tiny-ImageNet at 224 px.

    bash tools/dist_train.sh configs/pairs/mixer-b16_to_deit-tiny_tinyimagenet.py 4 --method dist

Requires Tiny-ImageNet in data/tiny-imagenet, 4 GPUs and the teacher that
configs/teachers/mixer-b16_tinyimagenet.py trains.

--method takes the name of any file in configs/_base_/methods, or the path of your own.
"""

_base_ = [
    '../_base_/models/mixer-b16.py',
    '../_base_/models/deit-tiny.py',
    '../_base_/datasets/tiny-imagenet_224_strong.py',
    '../_base_/schedules/transformer_300e.py',
    '../_base_/default_runtime.py',
]

model = dict(
    type='Distiller',
    teacher=dict(_base_.mixer_b16, num_classes=200),
    teacher_checkpoint='work_dirs/mixer-b16_tinyimagenet/epoch_300.pth',
    student=dict(_base_.deit_tiny, num_classes=200),
    input_size=(3, 224, 224),
)

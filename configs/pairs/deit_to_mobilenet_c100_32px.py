"""A small DeiT teaches half-width MobileNetV2 on CIFAR-100 at 32 px.

    python tools/train.py configs/pairs/deit_to_mobilenet_c100_32px.py --method dist

Requires CIFAR-100 in data/cifar100 (downloaded if the network allows) and the teacher that
configs/teachers/deit-small_c100_32px.py trains. No GPU needed; docs/cifar100.md shows a run. With
smaller batches add --auto-scale-lr: MLDR-KD diverges at the full learning rate.

--method takes the name of any file in configs/_base_/methods, or the path of your own.
"""

_base_ = [
    '../_base_/models/deit-small_32px.py',
    '../_base_/models/mobilenet-v2_32px.py',
    '../_base_/datasets/cifar100_32.py',
    '../_base_/schedules/cnn_40e.py',
    '../_base_/default_runtime.py',
]

model = dict(
    type='Distiller',
    teacher=_base_.deit_small,
    teacher_checkpoint='work_dirs/deit-small_c100_32px/epoch_40.pth',
    student=_base_.mobilenet_v2,
    input_size=(3, 32, 32),
)

"""MLDR-KD: Swin-T teaches MobileNetV2 on CIFAR-100 at 224 px.

    bash tools/dist_train.sh configs/mldr/swin-tiny_to_mobilenet-v2_c100.py 4

Needs CIFAR-100 in data/cifar100 (downloaded where the network allows), 4 GPUs and the teacher,
which configs/teachers/swin-tiny_c100.py trains.
Published: teacher 89.26, student alone 73.68, OFA-KD 80.98 (its paper, as others retell it),
MLDR-KD none; not rerun by us.
"""

_base_ = [
    '../_base_/models/swin-tiny.py',
    '../_base_/models/mobilenet-v2.py',
    '../_base_/datasets/cifar100_224.py',
    '../_base_/schedules/cnn_300e.py',
    '../_base_/methods/mldr.py',
    '../_base_/default_runtime.py',
]

model = dict(
    type='Distiller',
    teacher=_base_.swin_tiny,
    teacher_checkpoint='work_dirs/swin-tiny_c100/epoch_300.pth',
    student=_base_.mobilenet_v2,
    input_size=(3, 224, 224),
)

"""MLDR-KD: DeiT-small teaches MobileNetV2 on CIFAR-100 at 224 px.

    bash tools/dist_train.sh configs/mldr/deit_to_mobilenet_c100.py 4

Needs CIFAR-100 in data/cifar100 (downloaded where the network allows), 4 GPUs, and the teacher:
train it with configs/teachers/deit-small_c100.py, or give another one's path or URL:

    --cfg-options model.teacher_checkpoint=PATH_OR_URL
"""

_base_ = [
    '../_base_/models/deit-small.py',
    '../_base_/models/mobilenet-v2.py',
    '../_base_/datasets/cifar100_224.py',
    '../_base_/schedules/cnn_300e.py',
    '../_base_/methods/mldr.py',
    '../_base_/default_runtime.py',
]

model = dict(
    type='Distiller',
    teacher=_base_.deit_small,
    teacher_checkpoint='work_dirs/deit-small_c100/epoch_300.pth',
    student=_base_.mobilenet_v2,
    input_size=(3, 224, 224),
)

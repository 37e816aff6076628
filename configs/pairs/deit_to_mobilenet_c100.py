"""DeiT-small teaches MobileNetV2 on CIFAR-100 at 224 px.

    bash tools/dist_train.sh configs/pairs/deit_to_mobilenet_c100.py 4 --method dist

Requires CIFAR-100 in data/cifar100 (downloaded if the network allows), 4 GPUs and a teacher: train
it with configs/teachers/deit-small_c100.py, or give the path or URL of another one:

    --cfg-options model.teacher_checkpoint=PATH_OR_URL

--method takes the name of any file in configs/_base_/methods, or the path of your own.
"""

_base_ = [
    '../_base_/models/deit-small.py',
    '../_base_/models/mobilenet-v2.py',
    '../_base_/datasets/cifar100_224.py',
    '../_base_/schedules/cnn_300e.py',
    '../_base_/default_runtime.py',
]

model = dict(
    type='Distiller',
    teacher=_base_.deit_small,
    teacher_checkpoint='work_dirs/deit-small_c100/epoch_300.pth',
    student=_base_.mobilenet_v2,
    input_size=(3, 224, 224),
)

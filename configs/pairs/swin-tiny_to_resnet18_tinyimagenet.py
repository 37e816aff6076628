"""Swin-T teaches ResNet18 on Tiny-ImageNet at 224 px.

    bash tools/dist_train.sh configs/pairs/swin-tiny_to_resnet18_tinyimagenet.py 4 --method dist

Requires Tiny-ImageNet in data/tiny-imagenet, 4 GPUs and the teacher that
configs/teachers/swin-tiny_tinyimagenet.py trains.

--method takes the name of any file in configs/_base_/methods, or the path of your own.
"""

_base_ = [
    '../_base_/models/swin-tiny.py',
    '../_base_/models/resnet18.py',
    '../_base_/datasets/tiny-imagenet_224.py',
    '../_base_/schedules/cnn_300e.py',
    '../_base_/default_runtime.py',
]

model = dict(
    type='Distiller',
    teacher=dict(_base_.swin_tiny, num_classes=200),
    teacher_checkpoint='work_dirs/swin-tiny_tinyimagenet/epoch_300.pth',
    student=dict(_base_.resnet18, num_classes=200),
    input_size=(3, 224, 224),
)

"""ViT-L teaches ResNet101 on Tiny-ImageNet at 224 px.

    bash tools/dist_train.sh configs/pairs/vit-large_to_resnet101_tinyimagenet.py 4 --method dist

Requires Tiny-ImageNet in data/tiny-imagenet, 4 GPUs and the teacher that
configs/teachers/vit-large_tinyimagenet.py trains.

--method takes the name of any file in configs/_base_/methods, or the path of your own.
"""

_base_ = [
    '../_base_/models/vit-large.py',
    '../_base_/models/resnet101.py',
    '../_base_/datasets/tiny-imagenet_224.py',
    '../_base_/schedules/cnn_300e.py',
    '../_base_/default_runtime.py',
]

model = dict(
    type='Distiller',
    teacher=dict(_base_.vit_large, num_classes=200),
    teacher_checkpoint='work_dirs/vit-large_tinyimagenet/epoch_300.pth',
    student=dict(_base_.resnet101, num_classes=200),
    input_size=(3, 224, 224),
)

"""MLDR-KD: ViT-L teaches ResNet101 on Tiny-ImageNet at 224 px.

    bash tools/dist_train.sh configs/mldr/vit-large_to_resnet101_tiny.py 4

Needs Tiny-ImageNet in data/tiny-imagenet, 4 GPUs and the teacher, which
configs/teachers/vit-large_tiny.py trains.
"""

_base_ = [
    '../_base_/models/vit-large.py',
    '../_base_/models/resnet101.py',
    '../_base_/datasets/tiny-imagenet_224.py',
    '../_base_/schedules/cnn_300e.py',
    '../_base_/methods/mldr.py',
    '../_base_/default_runtime.py',
]

model = dict(
    type='Distiller',
    teacher=dict(_base_.vit_large, num_classes=200),
    teacher_checkpoint='work_dirs/vit-large_tiny/epoch_300.pth',
    student=dict(_base_.resnet101, num_classes=200),
    input_size=(3, 224, 224),
)

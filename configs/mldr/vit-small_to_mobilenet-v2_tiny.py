"""MLDR-KD: ViT-S teaches MobileNetV2 on Tiny-ImageNet at 224 px.

    bash tools/dist_train.sh configs/mldr/vit-small_to_mobilenet-v2_tiny.py 4

Needs Tiny-ImageNet in data/tiny-imagenet, 4 GPUs and the teacher, which
configs/teachers/vit-small_tiny.py trains.
"""

_base_ = [
    '../_base_/models/vit-small.py',
    '../_base_/models/mobilenet-v2.py',
    '../_base_/datasets/tiny-imagenet_224.py',
    '../_base_/schedules/cnn_300e.py',
    '../_base_/methods/mldr.py',
    '../_base_/default_runtime.py',
]

model = dict(
    type='Distiller',
    teacher=dict(_base_.vit_small, num_classes=200),
    teacher_checkpoint='work_dirs/vit-small_tiny/epoch_300.pth',
    student=dict(_base_.mobilenet_v2, head=dict(_base_.mobilenet_v2.head, num_classes=200)),
    input_size=(3, 224, 224),
)

"""ViT-S (patch 8) teaches ResNet18 on Tiny-ImageNet at 64 px.

    bash tools/dist_train.sh configs/pairs/vit-small_to_resnet18_tinyimagenet_64px.py 4 \
        --method dist

Requires Tiny-ImageNet in data/tiny-imagenet, 4 GPUs and the teacher that
configs/teachers/vit-small_tinyimagenet_64px.py trains. The recipe is the one for 224 px; none is
published for 64 px.

--method takes the name of any file in configs/_base_/methods, or the path of your own.
"""

_base_ = [
    '../_base_/models/vit-small_64px.py',
    '../_base_/models/resnet18_64px.py',
    '../_base_/datasets/tiny-imagenet_64.py',
    '../_base_/schedules/cnn_300e.py',
    '../_base_/default_runtime.py',
]

model = dict(
    type='Distiller',
    teacher=_base_.vit_small,
    teacher_checkpoint='work_dirs/vit-small_tinyimagenet_64px/epoch_300.pth',
    student=_base_.resnet18,
    input_size=(3, 64, 64),
)

"""MLDR-KD: Swin-T teaches ResNet18 on ImageNet-1K at 224 px. Not trained by us.

    bash tools/dist_train.sh configs/mldr/swin-tiny_to_resnet18_in1k.py 8

Needs ImageNet-1K in data/imagenet and 8 GPUs: the recipe is OFA-KD's for ImageNet, whose learning
rate goes with their batch. The teacher's weights are timm's, which it downloads; where the network
does not allow that, give a file of them:

    --cfg-options model.teacher.pretrained=False model.teacher_checkpoint=PATH_OR_URL
"""

_base_ = [
    '../_base_/models/swin-tiny.py',
    '../_base_/models/resnet18.py',
    '../_base_/datasets/imagenet_224.py',
    '../_base_/schedules/cnn_100e_in1k.py',
    '../_base_/methods/mldr.py',
    '../_base_/default_runtime.py',
]

model = dict(
    type='Distiller',
    teacher=dict(_base_.swin_tiny, num_classes=1000, pretrained=True),
    teacher_checkpoint=None,
    student=dict(_base_.resnet18, num_classes=1000),
    input_size=(3, 224, 224),
)

train_dataloader = dict(batch_size=64)

"""DeiT's distillation: RegNetY-16GF teaches DeiT-Ti with a distillation token on ImageNet-1K.

    bash tools/dist_train.sh configs/deit/regnety-160_to_deit-tiny-distilled_in1k.py 8

Requires ImageNet-1K in data/imagenet and 8 GPUs: the learning rate is for DeiT's batch of 1,024
images. timm downloads the teacher's weights; without network access, give a path or URL:

    --cfg-options model.teacher.pretrained=False model.teacher_checkpoint=PATH_OR_URL

Unlike DeiT, it shows each image once in an epoch, without repeated augmentation. This config has
not been trained in this project.
"""

_base_ = [
    '../_base_/datasets/imagenet_224_strong.py',
    '../_base_/schedules/deit_300e_in1k.py',
    '../_base_/default_runtime.py',
    '../_base_/methods/deit.py',
]

model = dict(
    type='Distiller',
    teacher=dict(
        type='TimmClassifier',
        model_name='regnety_160.deit_in1k',
        num_classes=1000,
        pretrained=True,
    ),
    student=dict(
        type='TimmClassifier',
        model_name='deit_tiny_distilled_patch16_224',
        num_classes=1000,
        drop_path_rate=0.1,
        loss=dict(type='LabelSmoothLoss', label_smooth_val=0.1, mode='original'),
        train_cfg=dict(augments=[dict(type='Mixup', alpha=0.8), dict(type='CutMix', alpha=1.0)]),
    ),
    input_size=(3, 224, 224),
    **_base_.method,
)

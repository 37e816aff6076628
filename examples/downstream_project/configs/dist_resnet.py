"""The project's data and models with a recipe and a method of mldr_kd_mm.

python train.py configs/dist_resnet.py
"""

_base_ = [
    'shapes.py',  # the data: replace this base by another one
    'mldr_kd_mm::_base_/schedules/cnn_300e.py',
    'mldr_kd_mm::_base_/default_runtime.py',
    'mldr_kd_mm::_base_/methods/dist.py',
]

model = dict(
    type='Distiller',
    teacher=dict(
        type='TimmClassifier',
        model_name='vit_tiny_patch16_224',
        img_size=64,
        patch_size=8,
        num_classes=4,
    ),
    teacher_checkpoint=None,  # the path or URL of your teacher; this one has random weights
    student=dict(type='TimmClassifier', model_name='resnet10t', num_classes=4),
    input_size=(3, 64, 64),
    **_base_.method,
)
train_cfg = dict(max_epochs=2)

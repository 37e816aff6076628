"""RetinaNet on a distilled student of timm, for mmdetection: MobileNetV2.

``backbone.pth`` is written by ``mldr-kd export RUN/epoch_100.pth backbone.pth --backbone``. For
another model, the neck's ``in_channels`` are the last four of
``timm.create_model(NAME, features_only=True).feature_info.channels()``.
"""

_base_ = [
    'mmdet::_base_/models/retinanet_r50_fpn.py',
    'mmdet::_base_/datasets/coco_detection.py',
    'mmdet::_base_/schedules/schedule_1x.py',
    'mmdet::_base_/default_runtime.py',
]
custom_imports = dict(imports=['mmpretrain.models'], allow_failed_imports=False)

model = dict(
    backbone=dict(
        _delete_=True,
        type='mmpretrain.TIMMBackbone',
        model_name='mobilenetv2_100',
        features_only=True,
        out_indices=(1, 2, 3, 4),
        pretrained=True,
        pretrained_cfg_overlay=dict(file='backbone.pth'),
    ),
    neck=dict(in_channels=[24, 32, 96, 320]),
)
optim_wrapper = dict(optimizer=dict(lr=0.01))

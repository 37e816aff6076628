"""RetinaNet on a distilled ResNet18, for mmdetection.

``backbone.pth`` is written by ``mldr-kd export RUN/epoch_100.pth backbone.pth --backbone``, from a
student ``timm/resnet18`` or ``torchvision/resnet18``, which have the names of mmdetection's ResNet.
"""

_base_ = [
    'mmdet::_base_/models/retinanet_r50_fpn.py',
    'mmdet::_base_/datasets/coco_detection.py',
    'mmdet::_base_/schedules/schedule_1x.py',
    'mmdet::_base_/default_runtime.py',
]

model = dict(
    backbone=dict(depth=18, init_cfg=dict(type='Pretrained', checkpoint='backbone.pth')),
    neck=dict(in_channels=[64, 128, 256, 512]),
)
optim_wrapper = dict(optimizer=dict(lr=0.01))

"""UPerNet on a distilled ResNet18, for mmsegmentation.

``backbone.pth`` is written by ``mldr-kd export RUN/epoch_100.pth backbone.pth --backbone``, from a
student ``timm/resnet18`` or ``torchvision/resnet18``, which have the names of mmsegmentation's
ResNet.

The config has the model alone, since OneDL's mmengine does not find ``mmseg::`` bases. Copy it to
``configs/upernet`` of mmsegmentation and inherit the rest there::

    _base_ = [
        '../_base_/datasets/cityscapes.py',
        '../_base_/default_runtime.py',
        '../_base_/schedules/schedule_40k.py',
    ]
"""

norm_cfg = dict(type='BN', requires_grad=True)  # SyncBN on several GPUs
model = dict(
    type='EncoderDecoder',
    data_preprocessor=dict(
        type='SegDataPreProcessor',
        mean=[123.675, 116.28, 103.53],
        std=[58.395, 57.12, 57.375],
        bgr_to_rgb=True,
        pad_val=0,
        seg_pad_val=255,
        size=(512, 1024),
    ),
    backbone=dict(
        type='ResNet',
        depth=18,
        norm_cfg=norm_cfg,
        init_cfg=dict(type='Pretrained', checkpoint='backbone.pth'),
    ),
    decode_head=dict(
        type='UPerHead',
        in_channels=[64, 128, 256, 512],
        in_index=[0, 1, 2, 3],
        pool_scales=(1, 2, 3, 6),
        channels=128,
        dropout_ratio=0.1,
        num_classes=19,
        norm_cfg=norm_cfg,
        align_corners=False,
        loss_decode=dict(type='CrossEntropyLoss'),
    ),
    auxiliary_head=dict(
        type='FCNHead',
        in_channels=256,
        in_index=2,
        channels=64,
        num_convs=1,
        concat_input=False,
        dropout_ratio=0.1,
        num_classes=19,
        norm_cfg=norm_cfg,
        align_corners=False,
        loss_decode=dict(type='CrossEntropyLoss', loss_weight=0.4),
    ),
    train_cfg=dict(),
    test_cfg=dict(mode='whole'),
)

"""DeiT-T (patch 16, 224 px) for 100 classes, trained with mixup and cutmix: 5.5 M parameters."""

deit_tiny = dict(
    type='TimmClassifier',
    model_name='deit_tiny_patch16_224',
    num_classes=100,
    loss=dict(type='LabelSmoothLoss', label_smooth_val=0.1, mode='original'),
    train_cfg=dict(augments=[dict(type='Mixup', alpha=0.8), dict(type='CutMix', alpha=1.0)]),
)

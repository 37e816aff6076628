"""ResMLP-S12 (224 px) for 100 classes, trained with mixup and cutmix: 15.0 M parameters."""

resmlp_s12 = dict(
    type='TimmClassifier',
    model_name='resmlp_12_224',
    num_classes=100,
    loss=dict(type='LabelSmoothLoss', label_smooth_val=0.1, mode='original'),
    train_cfg=dict(augments=[dict(type='Mixup', alpha=0.8), dict(type='CutMix', alpha=1.0)]),
)

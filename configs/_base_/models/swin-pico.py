"""Swin-P (224 px) for 100 classes, trained with mixup and cutmix: 5.2 M parameters."""

swin_pico = dict(
    type='TimmClassifier',
    model_name='swin_tiny_patch4_window7_224',
    num_classes=100,
    embed_dim=48,
    depths=(2, 2, 2, 2),
    num_heads=(2, 4, 8, 16),
    drop_path_rate=0.1,  # timm's default for Swin, unchanged in OFA-KD's recipe for CIFAR
    loss=dict(type='LabelSmoothLoss', label_smooth_val=0.1, mode='original'),
    train_cfg=dict(augments=[dict(type='Mixup', alpha=0.8), dict(type='CutMix', alpha=1.0)]),
)

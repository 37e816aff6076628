"""ResNet101 for 100 classes: 42.7 M parameters."""

resnet101 = dict(
    type='TimmClassifier',
    model_name='resnet101',
    num_classes=100,
    loss=dict(type='LabelSmoothLoss', label_smooth_val=0.1, mode='original'),
)

"""ResNet18 for 100 classes: 11.2 M parameters."""

resnet18 = dict(
    type='TimmClassifier',
    model_name='resnet18',
    num_classes=100,
    loss=dict(type='LabelSmoothLoss', label_smooth_val=0.1, mode='original'),
)

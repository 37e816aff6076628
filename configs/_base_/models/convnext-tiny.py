"""ConvNeXt-T for 100 classes: 27.9 M parameters."""

convnext_tiny = dict(
    type='TimmClassifier',
    model_name='convnext_tiny.fb_in1k',
    num_classes=100,
    loss=dict(type='LabelSmoothLoss', label_smooth_val=0.1, mode='original'),
)

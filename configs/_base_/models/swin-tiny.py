"""Swin-T (224 px) for 100 classes: 27.6 M parameters."""

swin_tiny = dict(
    type='TimmClassifier',
    model_name='swin_tiny_patch4_window7_224.ms_in1k',
    num_classes=100,
    loss=dict(type='LabelSmoothLoss', label_smooth_val=0.1, mode='original'),
)

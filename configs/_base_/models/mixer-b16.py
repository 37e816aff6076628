"""Mixer-B/16 (224 px) for 100 classes: 59.2 M parameters."""

mixer_b16 = dict(
    type='TimmClassifier',
    model_name='mixer_b16_224.goog_in21k_ft_in1k',
    num_classes=100,
    loss=dict(type='LabelSmoothLoss', label_smooth_val=0.1, mode='original'),
)

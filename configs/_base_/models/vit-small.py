"""ViT-S (patch 16, 224 px) for 100 classes: 21.7 M parameters."""

vit_small = dict(
    type='TimmClassifier',
    model_name='vit_small_patch16_224.augreg_in21k_ft_in1k',
    num_classes=100,
    loss=dict(type='LabelSmoothLoss', label_smooth_val=0.1, mode='original'),
)

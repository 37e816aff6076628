"""ResNet18 for Tiny-ImageNet's 200 classes at 64 px: 11.3 M parameters.

Its stem keeps the resolution, a 3x3 convolution without max-pooling as usual for small images:
ImageNet's would leave a map of 2x2 to the last stage, this one leaves 8x8.
"""

resnet18 = dict(
    type='ImageClassifier',
    backbone=dict(type='ResNet_CIFAR', depth=18),
    neck=dict(type='GlobalAveragePooling'),
    head=dict(
        type='LinearClsHead',
        num_classes=200,
        in_channels=512,
        loss=dict(type='LabelSmoothLoss', label_smooth_val=0.1, mode='original'),
        topk=(1, 5),
    ),
)

"""ResNet18 for Tiny-ImageNet's 200 classes at 64 px: 11.3 M parameters.

The stem keeps the resolution, with a 3x3 convolution and no max-pooling as usual for small images.
The last stage then gets an 8x8 map; with ImageNet's stem it would get 2x2.
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

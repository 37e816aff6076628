"""A small ResNet18 teaches a small ResMLP (patch 8) on 20 classes of CIFAR-100.

    python tools/train.py configs/pairs/resnet18_to_resmlp_cifar100-20cls.py --method dist

No GPU needed. Training uses 50 images per class and the recipe of the small ViT.

--method takes the name of any file in configs/_base_/methods, or the path of your own.
"""

_base_ = 'resnet18_to_vit_cifar100-20cls.py'

model = dict(
    student=dict(
        _delete_=True,
        type='TimmClassifier',
        model_name='resmlp_12_224',
        img_size=32,
        patch_size=8,
        embed_dim=64,
        num_blocks=4,
        num_classes=20,
        loss=dict(type='LabelSmoothLoss', label_smooth_val=0.1, mode='original'),
    ),
)

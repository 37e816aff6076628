"""A small ResNet18 teaches a small MLP-Mixer (patch 8) on 20 classes of CIFAR-100.

    python tools/train.py configs/pairs/resnet18_to_mixer_cifar100-20cls.py --method dist

No GPU needed. Training uses 50 images per class and the recipe of the small ViT.

--method takes the name of any file in configs/_base_/methods, or the path of your own.
"""

_base_ = 'resnet18_to_vit_cifar100-20cls.py'

# Width 64 and 4 blocks, as the ViT: 0.15 M parameters.
model = dict(
    student=dict(
        _delete_=True,
        type='ImageClassifier',
        backbone=dict(
            type='MlpMixer',
            arch=dict(embed_dims=64, num_layers=4, tokens_mlp_dims=32, channels_mlp_dims=256),
            img_size=32,
            patch_size=8,
        ),
        neck=dict(type='GlobalAveragePooling', dim=1),
        head=dict(
            type='LinearClsHead',
            num_classes=20,
            in_channels=64,
            loss=dict(type='LabelSmoothLoss', label_smooth_val=0.1, mode='original'),
            topk=(1, 5),
        ),
    )
)

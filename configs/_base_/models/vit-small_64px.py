"""ViT-S (patch 8, 64 px) for the 200 classes of Tiny-ImageNet: 21.5 M parameters."""

_base_ = 'vit-small.py'

vit_small = dict(img_size=64, patch_size=8, num_classes=200)

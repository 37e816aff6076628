"""ImageNet-1K at 224 px with the CNN recipe's augmentation, as for Tiny-ImageNet."""

_base_ = 'tiny-imagenet_224.py'

# ImageNet's statistics on [0, 1] in RGB order, times 255.
data_preprocessor = dict(
    num_classes=1000,
    mean=[0.485 * 255, 0.456 * 255, 0.406 * 255],
    std=[0.229 * 255, 0.224 * 255, 0.225 * 255],
)

# data_root contains train/ and val/ with one folder per class.
train_dataloader = dict(dataset=dict(type='mmpretrain.ImageNet', data_root='data/imagenet'))
num_train_images = 1_281_167
val_dataloader = dict(dataset=dict(type='mmpretrain.ImageNet', data_root='data/imagenet'))
test_dataloader = val_dataloader

"""Your own images in data/folder/{train,val}/CLASS/, at 224 px with crops and flips.

Set data_preprocessor.num_classes. The statistics are ImageNet's.
"""

_base_ = 'imagenet_224.py'

data_preprocessor = dict(num_classes=None)

# mmpretrain skips images with other suffixes than these, by default also .webp and .tiff.
extensions = ('.bmp', '.jfif', '.jpe', '.jpeg', '.jpg', '.pgm', '.png', '.ppm', '.tif', '.tiff')
extensions += ('.webp',)

train_dataloader = dict(
    dataset=dict(
        _delete_=True,
        type='mmpretrain.CustomDataset',
        data_root='data/folder/train',
        extensions=extensions,
        pipeline=_base_.train_pipeline,
    )
)
val_dataloader = dict(
    dataset=dict(
        _delete_=True,
        type='mmpretrain.CustomDataset',
        data_root='data/folder/val',
        extensions=extensions,
        pipeline=_base_.test_pipeline,
    )
)
test_dataloader = val_dataloader

# The folder may have fewer than five classes.
val_evaluator = dict(topk=1)
test_evaluator = val_evaluator

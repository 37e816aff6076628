"""A small ViT teaches a ResNet18 of one eighth width on 20 classes of CIFAR-100.

    python tools/train.py configs/pairs/vit_to_resnet18_cifar100-20cls.py --method dist

No GPU needed. Training uses 50 images per class and a shortened CNN recipe: smaller batches for
more steps, with the learning rate scaled to them.

--method takes the name of any file in configs/_base_/methods, or the path of your own.
"""

_base_ = [
    '../_base_/models/vit_32px.py',
    '../_base_/models/resnet18_32px.py',
    '../_base_/datasets/cifar100-20cls_32.py',
    '../_base_/schedules/cnn_300e.py',
    '../_base_/default_runtime.py',
]

model = dict(
    type='Distiller',
    teacher=_base_.vit,
    teacher_checkpoint='work_dirs/vit_cifar100-20cls/epoch_40.pth',
    student=dict(
        _base_.resnet18,
        backbone=dict(_base_.resnet18.backbone, stem_channels=8, base_channels=8),
        head=dict(_base_.resnet18.head, in_channels=64),
    ),
    input_size=(3, 32, 32),
)

train_dataloader = dict(batch_size=50, dataset=dict(subset=dict(per_class=50)))
num_train_images = 20 * 50
train_cfg = dict(max_epochs=25, val_interval=5)
optim_wrapper = dict(optimizer=dict(lr=0.02))
auto_scale_lr = dict(base_batch_size=50)
param_scheduler = [
    dict(type='LinearLR', start_factor=1e-2, by_epoch=True, begin=0, end=4),
    dict(type='CosineAnnealingLR', T_max=25 - 3 - 1, eta_min=4e-4, by_epoch=True, begin=3, end=25),
]

# At high rates, students and MLDR-KD's heads can diverge without it: docs/stability.md.
custom_hooks = [dict(type='mldr_kd_mm.AdaptiveClipHook')]

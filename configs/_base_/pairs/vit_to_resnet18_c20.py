"""A small ViT teaches a ResNet18 of an eighth of its width on 20 classes of CIFAR-100.

There are 50 images of each. The recipe is the CNN's, shortened and with smaller batches for more
steps, its learning rate scaled to them.
"""

_base_ = [
    '../models/vit_32px.py',
    '../models/resnet18_32px.py',
    '../datasets/cifar100-20_32.py',
    '../schedules/cnn_300e.py',
    '../default_runtime.py',
]

model = dict(
    type='Distiller',
    teacher=_base_.vit,
    teacher_checkpoint='work_dirs/vit_c20/epoch_40.pth',
    student=dict(
        _base_.resnet18,
        backbone=dict(_base_.resnet18.backbone, stem_channels=8, base_channels=8),
        head=dict(_base_.resnet18.head, in_channels=64),
    ),
    input_size=(3, 32, 32),
)

train_dataloader = dict(batch_size=50, dataset=dict(subset=dict(per_class=50)))
train_cfg = dict(max_epochs=25, val_interval=5)
optim_wrapper = dict(optimizer=dict(lr=0.02))
param_scheduler = [
    dict(type='LinearLR', start_factor=1e-2, by_epoch=True, begin=0, end=4),
    dict(type='CosineAnnealingLR', T_max=25 - 3 - 1, eta_min=4e-4, by_epoch=True, begin=3, end=25),
]

"""A small ResNet18 teaches a small ViT (patch 8) on 20 classes of CIFAR-100.

There are 50 images of each. The recipe is the Transformer's, shortened, with smaller batches for
more steps, twice its learning rate, and crops and flips alone.
"""

_base_ = [
    '../models/resnet18_32px.py',
    '../models/vit_32px.py',
    '../datasets/cifar100-20_32.py',
    '../schedules/transformer_300e.py',
    '../default_runtime.py',
]

model = dict(
    type='Distiller',
    teacher=_base_.resnet18,
    teacher_checkpoint='work_dirs/resnet18_c20/epoch_40.pth',
    student=dict(_base_.vit, backbone=dict(_base_.vit.backbone, patch_size=8)),
    input_size=(3, 32, 32),
)

train_dataloader = dict(batch_size=50, dataset=dict(subset=dict(per_class=50)))
train_cfg = dict(max_epochs=25, val_interval=5)
optim_wrapper = dict(optimizer=dict(lr=1e-3))
param_scheduler = [
    dict(type='LinearLR', start_factor=1e-3, by_epoch=True, begin=0, end=4),
    dict(type='CosineAnnealingLR', T_max=25 - 3 - 1, eta_min=1e-5, by_epoch=True, begin=3, end=25),
]

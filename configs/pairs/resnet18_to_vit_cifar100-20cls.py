"""A small ResNet18 teaches a small ViT (patch 8) on 20 classes of CIFAR-100.

    python tools/train.py configs/pairs/resnet18_to_vit_cifar100-20cls.py --method dist

No GPU needed. Training uses 50 images per class and a shortened Transformer recipe: smaller
batches for more steps, twice the learning rate, crops and flips only.

--method takes the name of any file in configs/_base_/methods, or the path of your own.
"""

_base_ = [
    '../_base_/models/resnet18_32px.py',
    '../_base_/models/vit_32px.py',
    '../_base_/datasets/cifar100-20cls_32.py',
    '../_base_/schedules/transformer_300e.py',
    '../_base_/default_runtime.py',
]

model = dict(
    type='Distiller',
    teacher=_base_.resnet18,
    teacher_checkpoint='work_dirs/resnet18_cifar100-20cls/epoch_40.pth',
    student=dict(_base_.vit, backbone=dict(_base_.vit.backbone, patch_size=8)),
    input_size=(3, 32, 32),
)

train_dataloader = dict(batch_size=50, dataset=dict(subset=dict(per_class=50)))
num_train_images = 20 * 50
train_cfg = dict(max_epochs=25, val_interval=5)
optim_wrapper = dict(optimizer=dict(lr=1e-3))
auto_scale_lr = dict(base_batch_size=50)
param_scheduler = [
    dict(type='LinearLR', start_factor=1e-3, by_epoch=True, begin=0, end=4),
    dict(type='CosineAnnealingLR', T_max=25 - 3 - 1, eta_min=1e-5, by_epoch=True, begin=3, end=25),
]

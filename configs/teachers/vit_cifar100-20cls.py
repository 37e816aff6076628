"""Teacher of docs/benchmarks.md: a small ViT on 20 classes of CIFAR-100 at 32 px.

    python tools/train.py configs/teachers/vit_cifar100-20cls.py

Requires CIFAR-100 in data/cifar100. No GPU needed: about 30 minutes on one core. Labels are not
smoothed (see resnet18_cifar100-20cls.py), and the learning rate is twice the recipe's, as in
deit-small_c100_32px.py.
"""

_base_ = [
    '../_base_/models/vit_32px.py',
    '../_base_/datasets/cifar100-20cls_32.py',
    '../_base_/schedules/transformer_40e.py',
    '../_base_/default_runtime.py',
]

model = _base_.vit
model.head.loss = dict(type='CrossEntropyLoss')

optim_wrapper = dict(optimizer=dict(lr=1e-3))

"""The teacher at 32 px: a small DeiT (patch 4) on CIFAR-100, from scratch.

    python tools/train.py configs/teachers/deit-small_c100_32px.py

Needs CIFAR-100 in data/cifar100; runs without a GPU. docs/first_run.md has a run of it. A short run
of a small model wants less regularisation than the recipe it comes from: crops and flips only, no
drop path, twice the learning rate.
"""

_base_ = [
    '../_base_/models/deit-small_32px.py',
    '../_base_/datasets/cifar100_32.py',
    '../_base_/schedules/transformer_40e.py',
    '../_base_/default_runtime.py',
]

model = _base_.deit_small
model.backbone.drop_path_rate = 0.0

optim_wrapper = dict(optimizer=dict(lr=1e-3))

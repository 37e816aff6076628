"""Teacher: a small DeiT (patch 4) on CIFAR-100 at 32 px, from scratch.

    python tools/train.py configs/teachers/deit-small_c100_32px.py

Requires CIFAR-100 in data/cifar100 (downloaded if the network allows). No GPU needed;
docs/cifar100.md shows a run. A short run of a small model needs less regularisation than the full
recipe: crops and flips only, no drop path, twice the learning rate.
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

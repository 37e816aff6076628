"""Teacher: DeiT-small on CIFAR-100 at 224 px, from an mmpretrain ImageNet checkpoint.

    bash tools/dist_train.sh configs/teachers/deit-small_c100.py 4 \
        --cfg-options load_from=PATH_OR_URL_OF_AN_INITIAL_CHECKPOINT

Requires CIFAR-100 in data/cifar100 (downloaded if the network allows) and 4 GPUs. Without an
initial checkpoint the model trains from scratch and becomes a far weaker teacher.
configs/mldr/deit_to_mobilenet_c100.py reads the last epoch.
"""

_base_ = [
    '../_base_/models/deit-small.py',
    '../_base_/datasets/cifar100_224_strong.py',
    '../_base_/schedules/transformer_300e.py',
    '../_base_/default_runtime.py',
]

model = _base_.deit_small
model.train_cfg = dict(augments=[dict(type='Mixup', alpha=0.8), dict(type='CutMix', alpha=1.0)])

"""Teacher: Vim-S on CIFAR-100 at 224 px, from the authors' ImageNet weights.

    bash tools/dist_train.sh configs/teachers/vim-small_c100.py 4 \
        --cfg-options load_from=AUTHORS_FILE

Requires CIFAR-100 in data/cifar100 (downloaded if the network allows) and 4 GPUs. AUTHORS_FILE is
an ImageNet checkpoint of Vim-S (hustvl/Vim); every layer except the head starts from it. The
recipe is the student's; how the published teacher was fine-tuned is unknown.
"""

_base_ = [
    '../_base_/models/vim-small.py',
    '../_base_/datasets/cifar100_224_strong.py',
    '../_base_/schedules/mamba_300e.py',
    '../_base_/default_runtime.py',
]

model = _base_.vim_small
model.train_cfg = dict(augments=[dict(type='Mixup', alpha=0.8), dict(type='CutMix', alpha=1.0)])

"""Teacher: Vim-S on Tiny-ImageNet at 224 px, from the authors' ImageNet weights.

    bash tools/dist_train.sh configs/teachers/vim-small_tinyimagenet.py 4 \
        --cfg-options load_from=AUTHORS_FILE

Requires Tiny-ImageNet in data/tiny-imagenet and 4 GPUs. AUTHORS_FILE is an ImageNet checkpoint of
Vim-S (hustvl/Vim); every layer except the head starts from it. The recipe is the student's; how
the published teacher was fine-tuned is unknown.
"""

_base_ = [
    '../_base_/models/vim-small.py',
    '../_base_/datasets/tiny-imagenet_224_strong.py',
    '../_base_/schedules/mamba_300e.py',
    '../_base_/default_runtime.py',
]

model = _base_.vim_small
model.num_classes = 200
model.train_cfg = dict(augments=[dict(type='Mixup', alpha=0.8), dict(type='CutMix', alpha=1.0)])

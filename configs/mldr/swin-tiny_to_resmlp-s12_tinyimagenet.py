"""MLDR-KD: Swin-T teaches ResMLP-S12 on Tiny-ImageNet at 224 px.

    bash tools/dist_train.sh configs/mldr/swin-tiny_to_resmlp-s12_tinyimagenet.py 4

Requires Tiny-ImageNet in data/tiny-imagenet, 4 GPUs and the teacher that
configs/teachers/swin-tiny_tinyimagenet.py trains.
"""

_base_ = ['../pairs/swin-tiny_to_resmlp-s12_tinyimagenet.py', '../_base_/methods/mldr_paper.py']

model = _base_.method

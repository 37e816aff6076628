"""MLDR-KD: ConvNeXt-T teaches Swin-P on Tiny-ImageNet at 224 px.

    bash tools/dist_train.sh configs/mldr/convnext-tiny_to_swin-pico_tinyimagenet.py 4

Requires Tiny-ImageNet in data/tiny-imagenet, 4 GPUs and the teacher that
configs/teachers/convnext-tiny_tinyimagenet.py trains.
"""

_base_ = ['../pairs/convnext-tiny_to_swin-pico_tinyimagenet.py', '../_base_/methods/mldr_paper.py']

model = _base_.method

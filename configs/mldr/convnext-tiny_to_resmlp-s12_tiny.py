"""MLDR-KD: ConvNeXt-T teaches ResMLP-S12 on Tiny-ImageNet at 224 px.

    bash tools/dist_train.sh configs/mldr/convnext-tiny_to_resmlp-s12_tiny.py 4

Needs Tiny-ImageNet in data/tiny-imagenet, 4 GPUs and the teacher, which
configs/teachers/convnext-tiny_tiny.py trains.
"""

_base_ = ['../_base_/pairs/convnext-tiny_to_resmlp-s12_tiny.py', '../_base_/methods/mldr.py']

model = _base_.method

"""MLDR-KD: Swin-T teaches ResMLP-S12 on ImageNet-1K at 224 px. Not trained by us.

    bash tools/dist_train.sh configs/mldr/swin-tiny_to_resmlp-s12_in1k.py 8

Needs ImageNet-1K in data/imagenet and 8 GPUs: the recipe is OFA-KD's for ImageNet, whose learning
rate goes with their batch. The teacher's weights are timm's, which it downloads; where the network
does not allow that, give a file of them:

    --cfg-options model.teacher.pretrained=False model.teacher_checkpoint=PATH_OR_URL
"""

_base_ = ['../_base_/pairs/swin-tiny_to_resmlp-s12_in1k.py', '../_base_/methods/mldr.py']

model = _base_.method

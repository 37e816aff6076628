"""MLDR-KD: Swin-T teaches ResNet18 on ImageNet-1K at 224 px.

    bash tools/dist_train.sh configs/mldr/swin-tiny_to_resnet18_in1k.py 8

Requires ImageNet-1K in data/imagenet and 8 GPUs: the learning rate is for OFA-KD's ImageNet
batch size. timm downloads the teacher's weights; without network access, give a path or URL:

    --cfg-options model.teacher.pretrained=False model.teacher_checkpoint=PATH_OR_URL

This config has not been trained in this project.
"""

_base_ = ['../pairs/swin-tiny_to_resnet18_in1k.py', '../_base_/methods/mldr_paper.py']

model = _base_.method

"""DIST: DeiT-small teaches MobileNetV2 on CIFAR-100 at 224 px.

    bash tools/dist_train.sh configs/dist/deit_to_mobilenet_c100.py 4

Needs CIFAR-100 in data/cifar100 (downloaded where the network allows), 4 GPUs, and the teacher:
train it with configs/teachers/deit-small_c100.py, or give another one's path or URL:

    --cfg-options model.teacher_checkpoint=PATH_OR_URL
"""

_base_ = ['../_base_/pairs/deit_to_mobilenet_c100.py', '../_base_/methods/dist.py']

model = _base_.method

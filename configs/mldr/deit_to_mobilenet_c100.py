"""MLDR-KD: DeiT-small teaches MobileNetV2 on CIFAR-100 at 224 px.

    bash tools/dist_train.sh configs/mldr/deit_to_mobilenet_c100.py 4

Requires CIFAR-100 in data/cifar100 (downloaded if the network allows), 4 GPUs and a teacher: train
it with configs/teachers/deit-small_c100.py, or give the path or URL of another one:

    --cfg-options model.teacher_checkpoint=PATH_OR_URL
"""

_base_ = ['../pairs/deit_to_mobilenet_c100.py', '../_base_/methods/mldr_paper.py']

model = _base_.method

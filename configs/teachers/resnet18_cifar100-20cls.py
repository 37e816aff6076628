"""Teacher of docs/benchmarks.md: a small ResNet18 on 20 classes of CIFAR-100 at 32 px.

    python tools/train.py configs/teachers/resnet18_cifar100-20cls.py

Requires CIFAR-100 in data/cifar100. No GPU needed: about 20 minutes on one core. Labels are not
smoothed: a teacher trained on smoothed labels reveals less about class similarity.
"""

_base_ = [
    '../_base_/models/resnet18_32px.py',
    '../_base_/datasets/cifar100-20cls_32.py',
    '../_base_/schedules/cnn_40e.py',
    '../_base_/default_runtime.py',
]

model = _base_.resnet18
model.head.loss = dict(type='CrossEntropyLoss')

"""The CNN teacher of docs/benchmarks.md: a small ResNet18 on 20 classes of CIFAR-100 at 32 px.

    python tools/train.py configs/teachers/resnet18_c20.py

Needs CIFAR-100 in data/cifar100; runs without a GPU, about 20 minutes on one core. Its targets are
not smoothed, since a teacher trained on smoothed ones tells less of how the classes resemble each
other.
"""

_base_ = [
    '../_base_/models/resnet18_32px.py',
    '../_base_/datasets/cifar100-20_32.py',
    '../_base_/schedules/cnn_40e.py',
    '../_base_/default_runtime.py',
]

model = _base_.resnet18
model.head.loss = dict(type='CrossEntropyLoss')

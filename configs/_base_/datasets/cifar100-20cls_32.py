"""20 of CIFAR-100's classes, those whose label is a multiple of 5, at 32 px."""

_base_ = 'cifar100_32.py'

data_preprocessor = dict(num_classes=20)

labels = list(range(0, 100, 5))
# A thread of its own would only wait for the core that trains.
train_dataloader = dict(num_workers=0, dataset=dict(subset=dict(labels=labels)))
val_dataloader = dict(num_workers=0, dataset=dict(subset=dict(labels=labels)))
test_dataloader = val_dataloader

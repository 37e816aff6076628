"""20 classes of CIFAR-100 at 32 px: those whose label is a multiple of 5."""

_base_ = 'cifar100_32.py'

data_preprocessor = dict(num_classes=20)

labels = list(range(0, 100, 5))
# On one core a loading process only competes with training.
train_dataloader = dict(num_workers=0, dataset=dict(subset=dict(labels=labels)))
num_train_images = 20 * 500
val_dataloader = dict(num_workers=0, dataset=dict(subset=dict(labels=labels)))
test_dataloader = val_dataloader

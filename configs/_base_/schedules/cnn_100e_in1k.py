"""Recipe for CNN students on ImageNet-1K (OFA-KD): 100 epochs of SGD, 8 x 64 images."""

train_cfg = dict(by_epoch=True, max_epochs=100, val_interval=1)
val_cfg = dict()
test_cfg = dict()

# No weight decay on norms and biases, as in timm's optimizers; no gradient clipping.
optim_wrapper = dict(
    optimizer=dict(type='SGD', lr=0.1, momentum=0.9, nesterov=True, weight_decay=1e-4),
    paramwise_cfg=dict(norm_decay_mult=0.0, bias_decay_mult=0.0, flat_decay_mult=0.0),
)

# Warm-up from 1e-4 to 0.1 at epoch 3, then divided by 10 at epochs 30, 60 and 90.
param_scheduler = [
    dict(type='LinearLR', start_factor=1e-4 / 0.1, by_epoch=True, begin=0, end=4),
    dict(type='MultiStepLR', milestones=[30, 60, 90], gamma=0.1, by_epoch=True),
]

auto_scale_lr = dict(base_batch_size=8 * 64)

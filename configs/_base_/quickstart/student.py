"""Images and recipe of the quickstart's student, alone and distilled.

This is the CNN recipe with small batches, so that an epoch has more than one step, and the learning
rate scaled to them; at the recipe's own 0.05 MLDR-KD diverges with such batches. (The learning rate
was chosen on seed 10, which the quickstart does not use.) 80 epochs take minutes; by then the
accuracy of both students is nearly flat.
"""

_base_ = ['base.py', '../schedules/cnn_300e.py']

# Ten images per class: with more images the student needs the teacher less.
train_dataloader = dict(batch_size=20, dataset=dict(subset=dict(per_class=10)))

train_cfg = dict(max_epochs=80, val_interval=5)
optim_wrapper = dict(optimizer=dict(lr=0.01))
auto_scale_lr = dict(base_batch_size=20)
param_scheduler = [
    dict(type='LinearLR', start_factor=1e-2, by_epoch=True, begin=0, end=4),
    dict(type='CosineAnnealingLR', T_max=80 - 3 - 1, eta_min=2e-4, by_epoch=True, begin=3, end=80),
]

# At high rates, students and MLDR-KD's heads can diverge without it: docs/stability.md.
custom_hooks = [dict(type='mldr_kd_mm.AdaptiveClipHook')]

"""The quickstart's teacher: a small ViT on all 1,200 training images of the digits.

    python tools/train.py configs/quickstart/teacher.py --work-dir work_dirs/quickstart/teacher

Requires scikit-learn, which contains the images. Takes 40 s on one core.
"""

_base_ = ['../_base_/quickstart/base.py', '../_base_/schedules/transformer_40e.py']

model = _base_.deit_small

# Higher than the recipe's, for a smaller model and a short run.
optim_wrapper = dict(optimizer=dict(lr=2e-3))
auto_scale_lr = dict(base_batch_size=50)

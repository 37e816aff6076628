"""Shard gradients and optimizer state over the processes: DeepSpeed's ZeRO, stage 2.

Add this file to the bases of a config and set its optim_wrapper to a DeepSpeedOptimWrapper, which
accepts no clip_grad; use gradient_clipping here instead. Requires `pip install deepspeed==0.16.9`:
mmengine imports names that later versions have moved.
"""

runner_type = 'FlexibleRunner'
strategy = dict(
    type='DeepSpeedStrategy',
    zero_optimization=dict(stage=2),
    config=dict(zero_allow_untested_optimizer=True),  # accept torch's optimizers too
)

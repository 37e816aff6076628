"""Gradients and optimizer state in shards, one a process: DeepSpeed's ZeRO, stage 2.

Another line in the bases of a config, whose optim_wrapper must be a DeepSpeedOptimWrapper: that
takes no clip_grad, which is here gradient_clipping. Needs `pip install deepspeed==0.16.9`: mmengine
imports what later ones have elsewhere.
"""

runner_type = 'FlexibleRunner'
strategy = dict(
    type='DeepSpeedStrategy',
    zero_optimization=dict(stage=2),
    config=dict(zero_allow_untested_optimizer=True),  # any of torch's, not DeepSpeed's alone
)

"""Weights, gradients and optimizer state in shards, one a process: torch's FSDP.

Another line in the bases of a config; docs/sharding.md says what it does to a Distiller.
"""

runner_type = 'FlexibleRunner'
strategy = dict(
    type='StudentFSDPStrategy',
    model_wrapper=dict(
        type='MMFullyShardedDataParallel',
        use_orig_params=True,
        auto_wrap_policy=dict(type='wrap_student_blocks', min_num_params=1_000_000),
    ),
    state_dict_cfg='full',  # a checkpoint is that of an unsharded run
)

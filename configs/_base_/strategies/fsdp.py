"""Shard weights, gradients and optimizer state over the processes: torch's FSDP.

Add this file to the bases of a config. docs/sharding.md explains its effect on a Distiller.
"""

runner_type = 'FlexibleRunner'
strategy = dict(
    type='StudentFSDPStrategy',
    model_wrapper=dict(
        type='MMFullyShardedDataParallel',
        use_orig_params=True,
        auto_wrap_policy=dict(type='wrap_student_blocks', min_num_params=1_000_000),
    ),
    state_dict_cfg='full',  # checkpoints equal those of an unsharded run
)

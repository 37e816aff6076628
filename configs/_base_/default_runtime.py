"""Shared by all runs: scope, hooks, logging, seed."""

default_scope = 'mldr_kd_mm'

default_hooks = dict(
    timer=dict(type='IterTimerHook'),
    logger=dict(type='LoggerHook', interval=50),
    param_scheduler=dict(type='ParamSchedulerHook'),
    checkpoint=dict(
        type='AtomicCheckpointHook', interval=1, max_keep_ckpts=3, save_best='accuracy/top1'
    ),
    sampler_seed=dict(type='DistSamplerSeedHook'),
    # Counts what load_from, --resume and init_cfg load; a missing weight is an error.
    load_weights=dict(type='LoadWeightsHook'),
    data_check=dict(type='DataCheckHook'),
    # docs/fault_tolerance.md lists the failures and how they are handled.
    exact_resume=dict(type='ExactResumeHook'),
    stop_signal=dict(type='StopSignalHook'),
    non_finite=dict(type='NonFiniteHook', max_in_a_row=10),
    broadcast_buffers=dict(type='BroadcastBuffersHook'),
    # Measures the teacher once before training. To turn it off:
    # --cfg-options default_hooks.teacher_accuracy.enabled=False
    teacher_accuracy=dict(type='TeacherAccuracyHook', enabled=True),
    chance=dict(type='ChanceHook'),
    progress=dict(type='ProgressHook'),
    # Figures of the models' predictions for the visualizer backends: docs/report.md.
    figures=dict(type='FigureHook', interval=10, batches=4),
    # Needs train_dataloader.sampler.views: docs/teacher_cache.md.
    teacher_cache=dict(type='TeacherCacheHook', dir=None),
)

env_cfg = dict(
    cudnn_benchmark=True,
    mp_cfg=dict(mp_start_method='fork', opencv_num_threads=0),
    dist_cfg=dict(backend='nccl'),  # tools/train.py uses gloo without a GPU
)

visualizer = dict(type='UniversalVisualizer', vis_backends=[dict(type='LocalVisBackend')])
log_level = 'INFO'
load_from = None
resume = False
randomness = dict(seed=0, deterministic=False)

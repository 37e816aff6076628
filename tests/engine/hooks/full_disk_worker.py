"""A process of test_checkpoint.py: ``RANK FOLDER DISK``. Only rank 0 writes on the disk."""

import os
import sys
from pathlib import Path

import torch
import torch.distributed
from helpers import NORMALIZATION, resnet, train

import mldr_kd_mm  # noqa: F401  registers everything
from mldr_kd_mm import ConfigError

rank, folder, disk = int(sys.argv[1]), Path(sys.argv[2]), sys.argv[3]
torch.set_num_threads(1)
torch.distributed.init_process_group(
    'gloo', init_method=f'file://{folder / "store"}', rank=rank, world_size=2
)
try:
    train(
        resnet(data_preprocessor=dict(NORMALIZATION)),
        folder / 'run',
        max_epochs=2,
        launcher='pytorch',
        env_cfg=dict(dist_cfg=dict(backend='gloo')),
        model_wrapper_cfg=dict(type='MMDistributedDataParallel', device_ids=None),
        default_hooks=dict(checkpoint=dict(type='AtomicCheckpointHook', out_dir=disk)),
    )
except ConfigError as error:
    (folder / f'error{rank}').write_text(str(error))
    os._exit(2)
os._exit(0)

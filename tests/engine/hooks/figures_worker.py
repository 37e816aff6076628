"""A process of test_figures.py, ``RANK PROCESSES FOLDER``: train FOLDER/config.json."""

import json
import os
import sys
from pathlib import Path

import torch
import torch.distributed
from mmengine.config import Config
from mmengine.runner import Runner

rank, processes, folder = int(sys.argv[1]), int(sys.argv[2]), Path(sys.argv[3])
torch.set_num_threads(1)
torch.distributed.init_process_group(
    'gloo', init_method=f'file://{folder / "store"}', rank=rank, world_size=processes
)
config = Config(json.loads((folder / 'config.json').read_text()))
config.launcher = 'pytorch'
config.env_cfg = dict(dist_cfg=dict(backend='gloo'))
config.model_wrapper_cfg = dict(
    type='MMDistributedDataParallel', broadcast_buffers=False, device_ids=None
)
runner = Runner.from_cfg(config)
runner.train()
torch.save(runner.model.module.state_dict(), folder / f'weights{rank}.pt')
# A gloo thread may abort a process during its normal shutdown.
sys.stdout.flush()
os._exit(0)

"""A process of the hooks' tests: ``RANK PROCESSES FOLDER``.

It trains FOLDER/config.json and writes its state before each step and at the end,
its validation results and its error, if any.
"""

import copy
import os
import sys
from pathlib import Path

import torch
import torch.distributed
from helpers import read_run
from mmengine.hooks import Hook
from mmengine.runner import Runner

from mldr_kd_mm import ConfigError

sys.path.insert(0, str(Path(__file__).parents[2]))
import faulty  # noqa: E402, F401  registers

rank, processes, folder = int(sys.argv[1]), int(sys.argv[2]), Path(sys.argv[3])


class Record(Hook):
    """Records the state that a test compares."""

    priority = 'VERY_LOW'

    def __init__(self):
        self.found = dict(states=[], metrics=[], error=None)

    def before_train_iter(self, runner, batch_idx, data_batch=None):
        self.found['states'].append(copy.deepcopy(runner.model.module.state_dict()))

    def after_train(self, runner):
        self.before_train_iter(runner, 0)

    def after_val_epoch(self, runner, metrics=None):
        self.found['metrics'].append(metrics)


runner = Runner.from_cfg(read_run(folder, rank, processes))
record = Record()
runner.register_hook(record)
try:
    runner.train()
except ConfigError as error:
    record.found['error'] = str(error)
torch.save(record.found, folder / f'found{rank}.pt')
# A gloo thread may abort a process during its normal shutdown.
sys.stdout.flush()
os._exit(0)

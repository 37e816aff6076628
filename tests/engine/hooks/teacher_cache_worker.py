"""A process of test_teacher_cache.py: ``RANK PROCESSES FOLDER KILL_AFTER``.

It trains FOLDER/config.json and writes its weights and the number of times that its
teacher ran, or is killed after KILL_AFTER steps.
"""

import os
import signal
import sys
from pathlib import Path

import torch
import torch.distributed
from helpers import read_run
from mmengine.hooks import Hook
from mmengine.runner import Runner

rank, processes, folder, kill_after = (
    int(sys.argv[1]),
    int(sys.argv[2]),
    Path(sys.argv[3]),
    int(sys.argv[4]),
)


class Kill(Hook):
    """Kills the process, as a crash would."""

    def after_train_iter(self, runner, batch_idx, data_batch=None, outputs=None):
        if runner.iter + 1 == kill_after:
            os.kill(os.getpid(), signal.SIGKILL)


runner = Runner.from_cfg(read_run(folder, rank, processes))
runner.register_hook(Kill())
model = runner.model.module if processes > 1 else runner.model
calls = []
for _, teacher, _ in model.teachers:
    teacher.model.register_forward_hook(lambda *_: calls.append(1))
runner.train()
torch.save(dict(weights=model.state_dict(), calls=len(calls)), folder / f'found{rank}.pt')
# A gloo thread may abort a process during its normal shutdown.
sys.stdout.flush()
os._exit(0)

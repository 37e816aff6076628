"""One process of a run into which a fault may be injected."""

from __future__ import annotations

import fcntl
import os
import sys
import traceback
from pathlib import Path

import torch
import torch.distributed
from faults.fault import Fault
from helpers import read_run
from mmengine.hooks import Hook
from mmengine.runner import Runner

import mldr_kd_mm
from mldr_kd_mm.structures.view import get_views


class Batches(Hook):
    """Record which samples were read in which batch of the epoch."""

    def __init__(self) -> None:
        self.seen = []

    def before_train_iter(self, runner, batch_idx, data_batch=None):
        views = get_views(data_batch['data_samples']) or ()
        samples = [view.index for view in views]
        self.seen.append((runner.epoch, batch_idx, samples))


def main(rank: int, processes: int, folder: Path, fault: dict | None = None) -> None:
    """Train the config FOLDER/config.json; write log and result to FOLDER.

    The exit code follows tools/train.py: 2 for a ConfigError, 1 if another process is gone.
    """
    log = os.open(folder / f'log{rank}.txt', os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    os.dup2(log, 1)
    os.dup2(log, 2)
    try:
        code = train(rank, processes, folder, fault)
    except mldr_kd_mm.ConfigError as error:
        print(f'error: {error}')
        code = 2
    except Exception:
        traceback.print_exc()
        code = 1
    sys.stdout.flush()
    sys.stderr.flush()
    # A gloo thread may abort a process during its normal shutdown.
    os._exit(code)


def launch(ranks: list[tuple]) -> None:
    """Start processes as torchrun does, and wait for them.

    Args:
        ranks: Arguments of :func:`main` for each process.
    """
    os.environ['TORCHELASTIC_RUN_ID'] = 'campaign'
    for rank, processes, folder, fault in ranks:
        # The child inherits the lock, which it holds until it ends.
        lock = open(folder / f'alive{rank}', 'w')  # noqa: SIM115
        fcntl.flock(lock, fcntl.LOCK_EX)
        if os.fork() == 0:
            main(rank, processes, folder, fault)
        lock.close()
    for _ in ranks:
        os.wait()


def train(rank: int, processes: int, folder: Path, fault: dict | None) -> int:
    """Train, and return the exit code."""
    runner = Runner.from_cfg(read_run(folder, rank, processes))
    batches = Batches()
    runner.register_hook(batches)
    if fault:
        runner.register_hook(Fault(**fault))
    code = 0
    try:
        runner.train()
    except SystemExit as stop:
        code = stop.code
    model = runner.model.module if processes > 1 else runner.model
    found = dict(
        weights=model.state_dict(),
        optimizer=runner.optim_wrapper.state_dict(),
        best=runner.message_hub.runtime_info.get('best_score'),
        batches=batches.seen,
    )
    # A kill must not leave half a result.
    torch.save(found, folder / f'unfinished{rank}.pt')
    (folder / f'unfinished{rank}.pt').rename(folder / f'found{rank}.pt')
    return code

"""Runs that are interrupted and resumed, for the tests and benchmarks/faults.py."""

from __future__ import annotations

import fcntl
import json
import os
import time
from pathlib import Path

import torch
from faults import worker
from helpers import fork_server, mldr, resnet, runner_config, vit

PIPELINE = [
    dict(type='RandomCrop', crop_size=32, padding=4),
    dict(type='RandomErasing', erase_prob=0.5, mode='rand'),
    dict(type='PackInputs'),
]
LOSSES = [
    dict(
        loss=dict(type='DFRALoss'),
        student=['logits', 'stage_logits', 'fused_logits'],
        teacher='logits',
        name='dfra',
    ),
    dict(
        loss=dict(type='CRDLoss', num_samples=40, negatives=8),
        student='feature',
        teacher='feature',
        name='crd',
    ),
]
HOOKS = dict(
    logger=dict(type='LoggerHook', interval=1),
    checkpoint=dict(
        type='AtomicCheckpointHook', interval=1, max_keep_ckpts=2, save_best='accuracy/top1'
    ),
    exact_resume=dict(type='ExactResumeHook'),
    stop_signal=dict(type='StopSignalHook'),
)
SCHEDULE = [
    dict(type='LinearLR', start_factor=0.1, by_epoch=True, end=1, convert_to_iter_based=True),
    dict(type='CosineAnnealingLR', by_epoch=True, begin=1, T_max=2, convert_to_iter_based=True),
    dict(type='MultiStepLR', by_epoch=True, milestones=[2], gamma=0.5),
]


def configure(folder: Path, max_epochs: int = 3, **kwargs) -> dict:
    """Config of a run with all state that a resume must restore.

    It has dropout, mixup, EMA, a memory bank and learning-rate schedules.
    """
    student = vit(train_cfg=dict(augments=dict(type='Mixup', alpha=0.8)))
    student['backbone']['drop_rate'] = 0.2
    config = runner_config(
        mldr(teacher=resnet(), student=student, losses=LOSSES),
        folder,
        max_epochs=max_epochs,
        default_hooks=HOOKS,
        custom_hooks=[dict(type='EMAHook', momentum=0.1)],
        optim_wrapper=dict(optimizer=dict(type='AdamW', lr=3e-3), clip_grad=dict(max_norm=5.0)),
        param_scheduler=SCHEDULE,
        experiment_name='run',
    )
    # 40 samples: the last batch of an epoch is smaller.
    config['train_dataloader'].update(batch_size=9, sampler=dict(type='ViewSampler'))
    config['train_dataloader']['dataset']['pipeline'] = PIPELINE
    config.update(kwargs)
    return config


def start(
    config: dict,
    folder: Path,
    processes: int = 1,
    fault: dict | None = None,
    launched: bool = False,
) -> list:
    """Start the processes of a run, forked from a process that has imported everything.

    Args:
        config: Config of the run.
        folder: Folder for the logs and results of the processes.
        processes: Number of processes.
        fault: Arguments of :class:`faults.fault.Fault`.
        launched: Whether to start one process that starts the others and waits for them, as
            torchrun does.

    Returns:
        The started processes: those of the run, or their launcher.
    """
    folder.mkdir(exist_ok=True)
    (folder / 'config.json').write_text(json.dumps(config))
    (folder / 'store').unlink(missing_ok=True)
    for path in folder.glob('found*.pt'):
        path.unlink()
    os.environ['GLOO_SOCKET_IFNAME'] = 'lo'
    context = fork_server()
    ranks = [(rank, processes, folder, fault) for rank in range(processes)]
    calls = [(worker.launch, (ranks,))] if launched else [(worker.main, rank) for rank in ranks]
    started = []
    for target, arguments in calls:
        process = context.Process(target=target, args=arguments)
        process.start()
        started.append(process)
    return started


def wait_for_orphans(folder: Path, processes: int, timeout: float = 120) -> None:
    """Wait for processes whose launcher is gone, which hold a lock until they end."""
    deadline = time.monotonic() + timeout
    for rank in range(processes):
        with open(folder / f'alive{rank}', 'w') as file:
            while True:
                try:
                    fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
                    break
                except BlockingIOError:
                    assert time.monotonic() < deadline, f'an orphan hangs: {logs(folder)}'
                    time.sleep(0.05)


def finish(started: list, folder: Path, timeout: float = 120) -> list[int]:
    """Wait for the processes of a run; fail if one does not end.

    Returns:
        Their exit codes, -9 for a killed process.
    """
    try:
        for process in started:
            process.join(timeout)
            assert process.exitcode is not None, f'a process hangs: {logs(folder)}'
    finally:
        for process in started:
            process.kill()
    return [process.exitcode for process in started]


def run(config: dict, folder: Path, processes: int = 1, code: int = 0, **kwargs) -> list[dict]:
    """Train to the end and return the result of each process."""
    codes = finish(start(config, folder, processes, **kwargs), folder)
    assert set(codes) == {code}, logs(folder)
    return found(folder, processes)


def found(folder: Path, processes: int) -> list[dict]:
    """Load the result of each process."""
    paths = (folder / f'found{rank}.pt' for rank in range(processes))
    return [torch.load(path, weights_only=False) for path in paths]


def logs(folder: Path) -> str:
    """Return the output of all processes of all runs in the folder."""
    return ''.join(path.read_text() for path in sorted(folder.glob('log*.txt')))


def assert_same(found: list[dict], wanted: list[dict]) -> None:
    """Assert that weights, banks, optimizer state and best score are bitwise equal."""
    for one, other in zip(found, wanted, strict=True):
        assert one['weights'].keys() == other['weights'].keys()
        for name, value in other['weights'].items():
            assert torch.equal(one['weights'][name], value), name
        for place, state in other['optimizer']['state'].items():
            for name, value in state.items():
                assert torch.equal(one['optimizer']['state'][place][name], value), (place, name)
    assert found[0]['best'] == wanted[0]['best']

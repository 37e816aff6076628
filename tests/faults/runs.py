"""Runs that are stopped and go on, for the tests and for benchmarks/faults.py."""

from __future__ import annotations

import json
from pathlib import Path

import torch
from helpers import mldr, resnet, run_ranks, runner_config, vit

WORKER = Path(__file__).with_name('worker.py')
EPOCHS = 3

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


def configure(folder: Path, processes: int = 1, **kwargs) -> dict:
    """A run with all that an exact resume must keep: dropout, mixup, EMA, a bank, schedules."""
    student = vit(train_cfg=dict(augments=dict(type='Mixup', alpha=0.8)))
    student['backbone']['drop_rate'] = 0.2
    config = runner_config(
        mldr(teacher=resnet(), student=student, losses=LOSSES),
        folder,
        max_epochs=EPOCHS,
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


def run(config: dict, folder: Path, processes: int = 1, fault: str = '', code: int = 0, **kwargs):
    """Train in new processes; ``fault`` is SIGNAL@ITERATION, of all of them.

    Returns:
        What the worker of each process left, None where it left nothing.
    """
    folder.mkdir(exist_ok=True)
    (folder / 'config.json').write_text(json.dumps(config | kwargs))
    (folder / 'store').unlink(missing_ok=True)
    commands = [(WORKER, rank, processes, folder, fault) for rank in range(processes)]
    run_ranks(*commands, code=code)
    return [_found(folder, rank) for rank in range(processes)]


def _found(folder: Path, rank: int) -> dict | None:
    path = folder / f'weights{rank}.pt'
    if not path.exists():
        return None
    found = torch.load(path, weights_only=False)
    batches = folder / f'batches{rank}.json'
    found['batches'] = json.loads(batches.read_text())
    path.unlink()
    batches.unlink()
    return found

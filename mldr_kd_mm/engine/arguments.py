"""Command-line arguments of ``tools/train.py`` and ``tools/test.py``, applied to a config."""

from __future__ import annotations

import inspect
import os
from argparse import ArgumentParser, ArgumentTypeError, Namespace
from collections.abc import Sequence
from typing import Any

import torch
from mmengine.config import Config, DictAction
from mmengine.runner import FlexibleRunner, Runner

from mldr_kd_mm.engine.launch import RANK_VARIABLES, fit_to_machine
from mldr_kd_mm.engine.schedules import RATES
from mldr_kd_mm.utils.errors import (
    ConfigError,
    check_above_zero,
    check_file,
    describe,
    did_you_mean,
)

RUNNER_FIELDS = {
    *inspect.signature(Runner.__init__).parameters,
    *inspect.signature(FlexibleRunner.__init__).parameters,
    'runner_type',
    'compile',
    'find_unused_parameters',
    'model_wrapper_cfg',
    'sync_bn',
}
"""Fields that mmengine reads from a config: the Runners' arguments and a few others."""


class CfgOptions(DictAction):
    """Parse KEY=VALUE pairs; for a missing ``=``, mmengine's own class prints a traceback."""

    def __call__(
        self,
        parser: ArgumentParser,
        namespace: Namespace,
        values: Sequence[str],
        option_string: str | None = None,
    ) -> None:
        for value in values:
            if '=' not in value:
                parser.error(f"{option_string} takes KEY=VALUE, got '{value}'")
        super().__call__(parser, namespace, values, option_string)


def positive(text: str) -> int:
    """Parse a command-line argument that must be a positive integer."""
    if not text.isdecimal() or int(text) < 1:
        raise ArgumentTypeError(f'must be a positive integer, got {text!r}')
    return int(text)


def add_arguments(parser: ArgumentParser) -> None:
    """Add the arguments that training and testing share."""
    parser.add_argument(
        '--method',
        metavar='NAME_OR_FILE',
        help='method to add to a pair: a name in configs/_base_/methods, such as mldr or dist; the '
        'path of a file with method = dict(losses=[...]); or scratch, the student alone',
    )
    parser.add_argument(
        '--work-dir',
        help='directory for checkpoints and logs; default: work_dir of the config, else '
        'work_dirs/CONFIG or work_dirs/PAIR_METHOD',
    )
    parser.add_argument(
        '--cfg-options',
        nargs='+',
        action=CfgOptions,
        default={},
        metavar='KEY=VALUE',
        help='override config fields, such as optim_wrapper.optimizer.lr=0.1 or key="[a,b]"',
    )
    parser.add_argument(
        '--launcher',
        choices=['none', *RANK_VARIABLES],
        default='none',
        help='launcher that started this process; the launch scripts set it',
    )
    # torch.distributed.launch passes this, in either spelling; torchrun sets LOCAL_RANK.
    parser.add_argument(
        '--local-rank', '--local_rank', type=int, default=0, help='set by torch.distributed.launch'
    )
    parser.add_argument(
        '--verbose', action='store_true', help='print the whole log, not only the progress'
    )
    parser.add_argument('--traceback', action='store_true', help='show the traceback of an error')


def add_training_arguments(parser: ArgumentParser) -> None:
    """Add the arguments that only training has."""
    parser.add_argument(
        '--resume',
        nargs='?',
        const='auto',
        metavar='CHECKPOINT',
        help='continue from this checkpoint; without a path, from the latest in the work directory',
    )
    parser.add_argument(
        '--overwrite',
        action='store_true',
        help='delete the checkpoints of an earlier run in the work directory and start again',
    )
    parser.add_argument(
        '--lr', type=float, help="peak learning rate; replaces the config's, also with --resume"
    )
    parser.add_argument(
        '--clip-grad',
        type=float,
        metavar='NORM',
        help='scale gradients down to this norm; also takes effect with --resume',
    )
    parser.add_argument('--amp', action='store_true', help='use mixed precision; requires a GPU')
    parser.add_argument('--no-validate', action='store_true', help='train without validation')
    parser.add_argument(
        '--auto-scale-lr',
        action='store_true',
        help=(
            'scale the learning rate with the batch size, as set by auto_scale_lr in the config; '
            'not that of --lr'
        ),
    )


def apply_arguments(cfg: Config, args: Namespace) -> None:
    """Write the shared arguments into a config, and fit it to this machine.

    Raises:
        ConfigError: If an argument is wrong.
    """
    merge_options(cfg, args.cfg_options)
    cfg.work_dir = args.work_dir or cfg.work_dir
    cfg.launcher = args.launcher
    # torchrun and mmengine's slurm launcher set LOCAL_RANK themselves.
    of_mpi = os.environ.get('OMPI_COMM_WORLD_LOCAL_RANK') if args.launcher == 'mpi' else None
    os.environ.setdefault('LOCAL_RANK', of_mpi or str(args.local_rank))
    fit_to_machine(cfg)


def apply_training_arguments(cfg: Config, args: Namespace) -> None:
    """Write the arguments of training into a config.

    Raises:
        ConfigError: If an argument is wrong.
    """
    if args.resume:
        cfg.resume = True
        cfg.load_from = None
        if args.resume != 'auto':
            check_file('--resume', args.resume)
            cfg.load_from = args.resume
    if args.no_validate:
        cfg.val_cfg = cfg.val_dataloader = cfg.val_evaluator = None
    if args.auto_scale_lr:
        if 'base_batch_size' not in cfg.get('auto_scale_lr', {}):
            raise ConfigError('--auto-scale-lr needs auto_scale_lr=dict(base_batch_size=...)')
        cfg.auto_scale_lr.enable = True
    if args.lr is not None:
        set_learning_rate(cfg, args.lr)
        if cfg.get('auto_scale_lr'):
            cfg.auto_scale_lr.enable = False  # it is the rate to train with
    if args.clip_grad is not None:
        set_gradient_clipping(cfg, args.clip_grad)
    if args.amp:
        _use_mixed_precision(cfg)


def set_learning_rate(cfg: Config, lr: float) -> None:
    """Set the peak learning rate; the rates in the schedules keep their ratio to it.

    Raises:
        ConfigError: If it is not above 0.
    """
    check_above_zero(lr=lr)
    optimizer = cfg.optim_wrapper.optimizer
    scale, optimizer.lr = lr / optimizer.lr, lr
    schedules = cfg.get('param_scheduler') or []
    for schedule in schedules if isinstance(schedules, list) else [schedules]:
        # Schedules of the momentum have fields of the same names.
        rates = RATES if 'Momentum' not in str(schedule.get('type')) else ()
        for field in rates:
            if field in schedule:
                schedule[field] *= scale


def set_gradient_clipping(cfg: Config, max_norm: float) -> None:
    """Scale the gradients of a run down to a norm.

    Raises:
        ConfigError: If it is not above 0.
    """
    check_above_zero(clip_grad=max_norm)
    cfg.optim_wrapper.clip_grad = dict(max_norm=max_norm)


def leaves_one(images: int, batch_size: int) -> bool:
    """Return whether the last batch of an epoch is one image, on which BatchNorm cannot be trained.

    Args:
        images: Number of images in the epoch.
        batch_size: Number of images in the other batches.
    """
    return batch_size > 1 and images % batch_size == 1


def merge_options(cfg: Config, options: dict[str, Any]) -> None:
    """Merge ``--cfg-options`` into a config.

    Raises:
        ConfigError: If an option names a field that nothing reads, or cannot be merged.
    """
    fields = RUNNER_FIELDS | set(cfg)
    for key in options:
        field = key.split('.')[0]
        if field not in fields:
            hint = did_you_mean(field, fields)
            raise ConfigError(
                f"--cfg-options {key}: the config has no field '{field}'{hint and '; '}{hint}"
            )
    try:
        cfg.merge_from_dict(options)
    except Exception as error:
        raise ConfigError(f'--cfg-options: {describe(error)}') from error


def _use_mixed_precision(cfg: Config) -> None:
    if not torch.cuda.is_available():
        raise ConfigError('--amp needs a GPU, but torch finds none; leave it out')
    kind = cfg.optim_wrapper.get('type', 'OptimWrapper')
    if kind not in ('OptimWrapper', 'AmpOptimWrapper'):
        raise ConfigError(f"--amp needs optim_wrapper.type 'OptimWrapper', got '{kind}'")
    cfg.optim_wrapper.type = 'AmpOptimWrapper'
    cfg.optim_wrapper.setdefault('loss_scale', 'dynamic')

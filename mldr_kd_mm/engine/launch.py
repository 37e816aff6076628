"""From a config to a run: what it needs first, the check that finds its mistakes, the start."""

from __future__ import annotations

import copy
import importlib.util
import os
from typing import Any

import torch
from mmengine.config import Config
from mmengine.optim import build_optim_wrapper
from mmengine.registry import (
    DATASETS,
    MODELS,
    OPTIMIZERS,
    RUNNERS,
    STRATEGIES,
    init_default_scope,
)
from mmengine.runner import Runner

from mldr_kd_mm.utils.checkpoint import use_safe_loading
from mldr_kd_mm.utils.errors import ConfigError, named
from mldr_kd_mm.utils.logging import log_warnings_only
from mldr_kd_mm.utils.progress import close_bars

# The variable in which each launcher gives a process its number.
RANK_VARIABLES = {'pytorch': 'RANK', 'slurm': 'SLURM_PROCID', 'mpi': 'OMPI_COMM_WORLD_RANK'}


def fit_to_machine(cfg: Config) -> None:
    """Fill in what a config may leave out, and mend what cannot work here.

    Args:
        cfg: The config; it is changed.
    """
    for name in ('train_dataloader', 'val_dataloader', 'test_dataloader'):
        if cfg.get(name):
            set_loader_defaults(cfg[name])
    if torch.cuda.is_available():
        use_fused_optimizer(cfg)


def set_loader_defaults(loader: dict) -> None:
    """Fill in what a data loader's config may leave out, and mend what cannot work here."""
    loader.setdefault('collate_fn', dict(type='default_collate'))
    loader.pin_memory = loader.get('pin_memory', True) and torch.cuda.is_available()
    # torch refuses to keep workers alive where there are none.
    workers = loader.get('num_workers', 0)
    loader.persistent_workers = loader.get('persistent_workers', True) and workers > 0


def use_fused_optimizer(cfg: Config) -> None:
    """Let a GPU update all weights in one kernel, which skips a step without the host."""
    optimizer = cfg.get('optim_wrapper', {}).get('optimizer', {})
    if cfg.get('strategy') is None and optimizer.get('type') in ('SGD', 'Adam', 'AdamW'):
        if 'foreach' not in optimizer:
            optimizer.setdefault('fused', True)


def preflight(cfg: Config, *fields: str) -> None:
    """Build once what a run is made of, so that a mistake is found before anything is written.

    Only the first process does it. What is built is thrown away: the Runner builds all of it
    again, under its own seed.

    Args:
        cfg: The config; it is not changed.
        fields: The fields that the run cannot do without.

    Raises:
        ConfigError: A field is missing, or its model, data set or optimizer cannot be built.
    """
    for field in fields:
        if cfg.get(field) is None:
            raise ConfigError(f"the config has no field '{field}'")
    if int(os.environ.get(RANK_VARIABLES.get(cfg.get('launcher'), ''), 0)) != 0:
        return
    cfg = copy.deepcopy(cfg)
    if cfg.get('data_preprocessor'):
        cfg.model.setdefault('data_preprocessor', cfg.data_preprocessor)
    init_default_scope(cfg.get('default_scope', 'mmengine'))
    with log_warnings_only():
        with named('model'):
            model = MODELS.build(cfg.model)
        if 'optim_wrapper' in fields:
            check_strategy(cfg)
            with named('optim_wrapper'):
                check_optimizer(cfg.optim_wrapper.get('optimizer', {}).get('type'))
                build_optim_wrapper(model, cfg.optim_wrapper)
        for field in fields:
            if field.endswith('_dataloader'):
                with named(f'{field}.dataset'):
                    DATASETS.build(cfg[field].dataset)


def check_strategy(cfg: Config) -> None:
    """Raise for a strategy that nobody would read, or that cannot run here."""
    if cfg.get('strategy') is None:
        return
    kind = cfg.strategy.get('type')
    if cfg.get('runner_type') != 'FlexibleRunner':
        raise ConfigError("strategy: only runner_type='FlexibleRunner' reads it")
    if isinstance(kind, str) and STRATEGIES.get(kind) is None:
        raise ConfigError(f"strategy.type: there is no strategy '{kind}'")
    if cfg.get('launcher', 'none') == 'none':
        raise ConfigError(f'strategy: {kind} needs a launcher: tools/dist_train.sh CONFIG GPUS')
    if kind == 'DeepSpeedStrategy' and importlib.util.find_spec('deepspeed') is None:
        raise ConfigError("strategy: DeepSpeedStrategy needs pip install 'deepspeed==0.16.9'")


def check_optimizer(kind: Any) -> None:
    """Raise for an unknown name, which mmengine's own message would not mention."""
    if isinstance(kind, str) and OPTIMIZERS.get(kind) is None:
        raise ConfigError(f"optim_wrapper.optimizer.type: there is no optimizer '{kind}'")


def start(cfg: Config, task: str) -> Runner:
    """Build the Runner and run its method ``train`` or ``test``.

    Returns:
        The Runner, when it has ended.
    """
    # The hook that does it comes too late for a FlexibleRunner.
    use_safe_loading()
    runner = RUNNERS.build(cfg)
    try:
        getattr(runner, task)()
    finally:
        close_bars()
    return runner

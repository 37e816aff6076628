"""What train.py and test.py share: arguments, the config, the check before a run."""

import copy
import difflib
import errno
import gc
import importlib.util
import inspect
import os
import sys
import traceback
from argparse import ArgumentParser
from contextlib import contextmanager
from pathlib import Path

import torch
from mmengine.config import Config, DictAction
from mmengine.logging import MMLogger
from mmengine.optim import build_optim_wrapper
from mmengine.registry import (
    DATASETS,
    MODELS,
    OPTIMIZERS,
    RUNNERS,
    STRATEGIES,
    init_default_scope,
)
from mmengine.runner import FlexibleRunner, Runner

from mldr_kd_mm.checkpoint import use_safe_loading
from mldr_kd_mm.errors import ConfigError

# What mmengine reads from a config: the Runners' arguments, and fields it looks up by itself.
RUNNER_FIELDS = {
    *inspect.signature(Runner.__init__).parameters,
    *inspect.signature(FlexibleRunner.__init__).parameters,
    'runner_type',
    'compile',
    'find_unused_parameters',
    'model_wrapper_cfg',
    'sync_bn',
}
# The variable in which each launcher gives a process its number.
RANK_VARIABLES = {'pytorch': 'RANK', 'slurm': 'SLURM_PROCID', 'mpi': 'OMPI_COMM_WORLD_RANK'}


class CfgOptions(DictAction):
    """KEY=VALUE pairs; mmengine's own class answers a missing ``=`` with a traceback."""

    def __call__(self, parser, namespace, values, option_string=None):
        for value in values:
            if '=' not in value:
                parser.error(f"{option_string} takes KEY=VALUE, got '{value}'")
        super().__call__(parser, namespace, values, option_string)


def add_arguments(parser: ArgumentParser) -> None:
    """Add the arguments that train.py and test.py have in common."""
    parser.add_argument(
        '--work-dir', help='default: work_dir of the config, else work_dirs/NAME_OF_CONFIG'
    )
    parser.add_argument(
        '--cfg-options',
        nargs='+',
        action=CfgOptions,
        default={},
        metavar='KEY=VALUE',
        help='override fields of the config, as in optim_wrapper.optimizer.lr=0.1 or key="[a,b]"',
    )
    parser.add_argument('--launcher', choices=['none', *RANK_VARIABLES], default='none')
    # torch.distributed.launch passes this, in either spelling; torchrun sets LOCAL_RANK.
    parser.add_argument('--local-rank', '--local_rank', type=int, default=0)
    parser.add_argument('--traceback', action='store_true', help='show where an error came from')


@contextmanager
def one_line_for(kind: type[Exception], show_traceback: bool):
    """End the program with the message of an exception of this kind, and exit code 2."""
    try:
        yield
    except kind as error:
        if show_traceback:
            traceback.print_exc()
        print(f'error: {describe(error)}', file=sys.stderr)
        sys.exit(2)


def describe(error: Exception) -> str:
    """Return the message of an exception, or its type where it has none."""
    # The str() of a KeyError is the repr() of its message.
    message = error.args[0] if isinstance(error, KeyError) and error.args else error
    text = str(message) or type(error).__name__
    if 'in DataLoader worker process' in text:
        # torch puts the worker's traceback before the message.
        text = text.strip().splitlines()[-1].partition(': ')[2] or text
    return text


def load_config(args) -> Config:
    """Return the config that the arguments ask for, ready for this machine."""
    check_file('config', args.config)
    try:
        cfg = Config.fromfile(args.config)
    except Exception as error:
        raise ConfigError(f'{args.config}: {describe(error)}') from error
    merge_options(cfg, args.cfg_options)
    default_work_dir = Path('work_dirs', Path(args.config).stem)
    cfg.work_dir = args.work_dir or cfg.get('work_dir') or str(default_work_dir)
    cfg.launcher = args.launcher
    os.environ.setdefault('LOCAL_RANK', str(args.local_rank))
    for name in ('train_dataloader', 'val_dataloader', 'test_dataloader'):
        if cfg.get(name):
            set_loader_defaults(cfg[name])
    if torch.cuda.is_available():
        use_fused_optimizer(cfg)
    elif args.launcher != 'none':
        use_cpu_processes(cfg)
    return cfg


def merge_options(cfg: Config, options: dict) -> None:
    """Merge ``--cfg-options`` into the config; a field that nothing reads is a mistake."""
    fields = RUNNER_FIELDS | set(cfg)
    for key in options:
        field = key.split('.')[0]
        if field not in fields:
            near = difflib.get_close_matches(field, fields)
            hint = f'; did you mean {" or ".join(near)}?' if near else ''
            raise ConfigError(f"--cfg-options {key}: the config has no field '{field}'{hint}")
    try:
        cfg.merge_from_dict(options)
    except Exception as error:
        raise ConfigError(f'--cfg-options: {describe(error)}') from error


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


def use_cpu_processes(cfg: Config) -> None:
    """Let the processes of a run without a GPU talk over gloo."""
    if cfg.launcher != 'pytorch':
        raise ConfigError(f'--launcher {cfg.launcher} needs a GPU; without one use pytorch')
    cfg.setdefault(
        'model_wrapper_cfg',
        dict(
            type='MMDistributedDataParallel',
            broadcast_buffers=False,
            find_unused_parameters=cfg.get('find_unused_parameters', False),
        ),
    )
    # mmengine would name a GPU, which torch refuses for a model on the CPU.
    cfg.merge_from_dict({'env_cfg.dist_cfg.backend': 'gloo', 'model_wrapper_cfg.device_ids': None})


def check_file(field: str, path: str) -> None:
    """Raise unless the path is a file, or a URL, which is left to mmengine."""
    if '://' not in path and not os.path.isfile(path):
        raise ConfigError(f"{field}: there is no file '{path}'")


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
    if int(os.environ.get(RANK_VARIABLES.get(cfg.launcher, ''), 0)) != 0:
        return
    cfg = copy.deepcopy(cfg)
    if cfg.get('data_preprocessor'):
        cfg.model.setdefault('data_preprocessor', cfg.data_preprocessor)
    init_default_scope(cfg.get('default_scope', 'mmengine'))
    with quiet_log():
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
    if cfg.launcher == 'none':
        raise ConfigError(f'strategy: {kind} needs a launcher: tools/dist_train.sh CONFIG GPUS')
    if kind == 'DeepSpeedStrategy' and importlib.util.find_spec('deepspeed') is None:
        raise ConfigError("strategy: DeepSpeedStrategy needs pip install 'deepspeed==0.16.9'")


def check_optimizer(kind) -> None:
    """Raise for an unknown name, which mmengine's own message would not mention."""
    if isinstance(kind, str) and OPTIMIZERS.get(kind) is None:
        raise ConfigError(f"optim_wrapper.optimizer.type: there is no optimizer '{kind}'")


@contextmanager
def quiet_log():
    """Log warnings only: the Runner will say the rest again, in its own log."""
    logger = MMLogger.get_current_instance()
    level = logger.level
    logger.setLevel('WARNING')
    try:
        yield
    finally:
        logger.setLevel(level)


@contextmanager
def named(field: str):
    """Turn any exception into a ConfigError that starts with the field's name."""
    try:
        yield
    except ConfigError:
        raise
    except Exception as error:
        raise ConfigError(f'{field}: {describe(error)}') from error


def run(cfg: Config, task: str) -> None:
    """Build the Runner and run its method ``train`` or ``test``."""
    # The hook that does it comes too late for a FlexibleRunner.
    use_safe_loading()
    over_gloo = cfg.launcher != 'none' and not torch.cuda.is_available()
    if over_gloo:
        # mmengine would first choose a GPU for this process.
        torch.distributed.init_process_group('gloo')
    try:
        getattr(RUNNERS.build(cfg), task)()
        code = 0
    except SystemExit as stop:  # of the StopSignalHook
        code = stop.code
    except (OSError, RuntimeError) as error:
        message = fault_of_machine(error)
        if message is None:
            raise
        print(f'error: {message}; --resume goes on from the last checkpoint', file=sys.stderr)
        code = 1
    leave(code, over_gloo)


def fault_of_machine(error: Exception) -> str | None:
    """Return one line for what is no mistake in the config and none of the program's."""
    if isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT):
        return f'{error.filename or "a file"} cannot be written: {error.strerror}'
    # gloo raises plain RuntimeErrors.
    if torch.distributed.is_initialized() and (
        isinstance(error, torch.distributed.DistError)
        or any(words in str(error) for words in ('gloo', 'Connection closed by peer'))
    ):
        reason = describe(error).splitlines()[0]
        return f'another process of this run is gone or cannot be reached ({reason})'
    return None


def leave(code: int, over_gloo: bool) -> None:
    """End this process of a run."""
    if over_gloo:
        # A thread of gloo's that lets go of a tensor while Python shuts down aborts the process
        # (one run in six on a busy machine), so Python is not shut down. The collection ends the
        # workers of the data loaders.
        gc.collect()
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)
    if torch.distributed.is_initialized():
        torch.distributed.destroy_process_group()
    if code:
        sys.exit(code)

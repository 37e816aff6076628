"""What train.py and test.py share: arguments, the config, the run."""

import difflib
import errno
import gc
import inspect
import os
import sys
from argparse import ArgumentParser
from pathlib import Path

import torch
from mmengine.config import Config, DictAction
from mmengine.runner import FlexibleRunner, Runner

from mldr_kd_mm.engine.launch import RANK_VARIABLES, fit_to_machine, start
from mldr_kd_mm.utils.errors import ConfigError, describe
from mldr_kd_mm.utils.errors import one_line_for as one_line_for

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
    fit_to_machine(cfg)
    if args.launcher != 'none' and not torch.cuda.is_available():
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


def run(cfg: Config, task: str) -> None:
    """Build the Runner and run its method ``train`` or ``test``."""
    over_gloo = cfg.launcher != 'none' and not torch.cuda.is_available()
    join_processes(cfg, over_gloo)
    try:
        start(cfg, task)
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


def join_processes(cfg: Config, over_gloo: bool) -> None:
    """Meet the other processes, where mmengine would not do it well."""
    attempt = int(os.environ.get('TORCHELASTIC_RESTART_COUNT', 0))
    if over_gloo:
        # mmengine would first choose a GPU for this process.
        backend = 'gloo'
    elif cfg.launcher == 'pytorch' and attempt:
        torch.cuda.set_device(int(os.environ['LOCAL_RANK']))
        backend = cfg.get('env_cfg', {}).get('dist_cfg', {}).get('backend', 'nccl')
    else:
        return
    # torchrun keeps its store when it starts the processes again, and in it the addresses of those
    # that are gone, which a process may read before they are written anew.
    store, rank, processes = next(torch.distributed.rendezvous('env://'))
    store = torch.distributed.PrefixStore(f'attempt{attempt}', store)
    torch.distributed.init_process_group(backend, store=store, rank=rank, world_size=processes)


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

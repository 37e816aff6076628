"""Run a config: fit it to the machine, start it, and end with an exit code."""

from __future__ import annotations

import errno
import gc
import multiprocessing
import os
import shlex
import sys
import traceback
from contextlib import ExitStack
from datetime import timedelta
from pathlib import Path
from typing import Any

import torch
from mmengine.config import Config
from mmengine.registry import RUNNERS
from mmengine.runner import Runner

from mldr_kd_mm.engine.hooks import AtomicCheckpointHook, LoadWeightsHook, StopSignalHook
from mldr_kd_mm.engine.work_dir import claim_work_dirs
from mldr_kd_mm.models.data_preprocessor import state_statistics
from mldr_kd_mm.models.weights import use_counted_loading
from mldr_kd_mm.utils.atomic_files import atomic_write
from mldr_kd_mm.utils.errors import ConfigError, check_above_zero, describe, is_number, named
from mldr_kd_mm.utils.logging import shown_path
from mldr_kd_mm.utils.progress import close_bars
from mldr_kd_mm.utils.run_identity import RunIdentity, was_restarted
from mldr_kd_mm.utils.workers import available_cores, kill_workers

_DISK_ERRORS = (errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EIO, errno.ESTALE)

_HOOKS_OF_MMENGINE = 'runtime_info timer sampler_seed logger param_scheduler checkpoint'.split()

RANK_VARIABLES = {'pytorch': 'RANK', 'slurm': 'SLURM_PROCID', 'mpi': 'OMPI_COMM_WORLD_RANK'}
"""The variable in which each launcher gives a process its rank."""


def fit_to_machine(cfg: Config) -> None:
    """Fill in what a config may leave out, and replace what cannot work on this machine.

    Args:
        cfg: The config; it is changed.

    Raises:
        ConfigError: If its launcher cannot start processes without a GPU, or a data loader is not
            a dict with a number of workers.
    """
    for name in ('train_dataloader', 'val_dataloader', 'test_dataloader'):
        if cfg.get(name):
            _check_loader(name, cfg[name])
            set_loader_defaults(cfg[name])
    hooks = cfg.get('default_hooks')
    for name in [*hooks] if isinstance(hooks, dict) else []:
        # mmengine accepts None only for its own hooks.
        if hooks[name] is None and name not in _HOOKS_OF_MMENGINE:
            del hooks[name]
    state_statistics(cfg)
    if (cfg.get('randomness') or {}).get('deterministic'):
        # Without it cuBLAS, which reads it once, is not deterministic and torch raises.
        os.environ.setdefault('CUBLAS_WORKSPACE_CONFIG', ':4096:8')
    if torch.cuda.is_available():
        use_fused_optimizer(cfg)
    elif cfg.get('launcher', 'none') != 'none':
        use_cpu_processes(cfg)


def _check_loader(field: str, loader: Any) -> None:
    if not isinstance(loader, dict):
        raise ConfigError(f'{field}={loader!r}: must be a dict')
    workers = loader.get('num_workers', 0)
    if not is_number(workers, int):
        raise ConfigError(f'{field}.num_workers={workers!r}: must be a number of processes')


def set_loader_defaults(loader: dict) -> None:
    """Fill in what a data loader's config may leave out; use at most one worker per core."""
    loader.setdefault('collate_fn', dict(type='default_collate'))
    loader.pin_memory = loader.get('pin_memory', True) and torch.cuda.is_available()
    if 'num_workers' in loader:
        loader.num_workers = min(loader.num_workers, available_cores())
    # torch rejects persistent_workers if there are no workers.
    workers = loader.get('num_workers', 0)
    loader.persistent_workers = loader.get('persistent_workers', True) and workers > 0


def use_cpu_processes(cfg: Config) -> None:
    """Let the processes of a run without a GPU communicate over gloo.

    Raises:
        ConfigError: If the launcher is not torchrun.
    """
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
    # mmengine would name a GPU, which torch rejects for a model on the CPU.
    cfg.merge_from_dict({'env_cfg.dist_cfg.backend': 'gloo', 'model_wrapper_cfg.device_ids': None})


def use_fused_optimizer(cfg: Config) -> None:
    """Update all weights in one GPU kernel, which can skip a step without the host."""
    optimizer = cfg.get('optim_wrapper', {}).get('optimizer', {})
    if cfg.get('strategy') is None and optimizer.get('type') in ('SGD', 'Adam', 'AdamW'):
        if 'foreach' not in optimizer:
            optimizer.setdefault('fused', True)


def is_rank_0(cfg: Config) -> bool:
    """Return whether this is the main process, before the process group is initialised."""
    return int(os.environ.get(RANK_VARIABLES.get(cfg.get('launcher'), ''), 0)) == 0


def shows_progress(cfg: Config) -> bool:
    """Return whether a run has a ProgressHook, without which its console must not be quiet."""
    hooks = [*(cfg.get('default_hooks') or {}).values(), *(cfg.get('custom_hooks') or [])]
    return any(
        isinstance(hook, dict)
        and str(getattr(hook.get('type'), '__name__', hook.get('type'))).endswith('ProgressHook')
        and hook.get('enabled', True)
        for hook in hooks
    )


def start(cfg: Config, task: str) -> Runner:
    """Build the Runner and run its method ``train`` or ``test``.

    Its data-loader workers and signal handlers end with the run, however it ends.

    Returns:
        The Runner, after the run.
    """
    # The hook that does this runs too late for a FlexibleRunner.
    use_counted_loading()
    if is_rank_0(cfg):
        with named('work_dir'):
            _write_config(cfg)
    not_ours = multiprocessing.active_children()
    runner = RUNNERS.build(cfg)
    if not any(isinstance(hook, LoadWeightsHook) for hook in runner.hooks):
        runner.register_hook(LoadWeightsHook())
    try:
        for hook in runner.hooks:
            if isinstance(hook, AtomicCheckpointHook) and task == 'train':
                hook.find_start(runner)
        getattr(runner, task)()
    finally:
        close_bars()
        for hook in runner.hooks:
            if isinstance(hook, StopSignalHook):
                hook.restore_handlers()
        kill_workers(but=not_ours)
    return runner


def _write_config(cfg: Config) -> None:
    """Write a config where the Runner will, but replace a link there instead of following it."""
    if cfg.filename is not None:
        path = Path(cfg.work_dir, Path(cfg.filename).name)
        path.parent.mkdir(parents=True, exist_ok=True)
        with atomic_write(path) as file:
            file.write(cfg.dump().encode())


def run(cfg: Config, task: str, overwrite: bool = False) -> None:
    """Run a config as the main job of this process, and end the process.

    The exit code is 1 after a failure of the machine, such as a full disk or a lost process, and
    that of the StopSignalHook if a signal stopped the run.

    Args:
        cfg: The config.
        task: ``train`` or ``test``.
        overwrite: Whether training may replace an earlier run in the work directory.

    Raises:
        ConfigError: The run cannot start, for example because the work directory is in use.
    """
    over_gloo = cfg.launcher != 'none' and not torch.cuda.is_available()
    with ExitStack() as stack:
        if task == 'train' and is_rank_0(cfg):
            stack.enter_context(claim_work_dirs([(cfg, _continues_run(cfg))], overwrite))
        join_processes(cfg, over_gloo)
        # mmengine collects garbage for each data set that it builds: a second with all modules.
        gc.freeze()
        code = _exit_code_of(cfg, task)
    leave(code, over_gloo)


def _continues_run(cfg: Config) -> bool:
    """Return whether a run continues the one in its work directory.

    A run that resumes from a checkpoint of another directory is a new run.
    """
    if was_restarted(RunIdentity.read(cfg.work_dir)):
        return True
    resume, source = cfg.get('resume', False), cfg.get('load_from')
    if isinstance(resume, str):  # a FlexibleRunner accepts this
        source = resume
    if not resume or source is None:
        return bool(resume)
    work_dir = Path(cfg.work_dir).resolve()
    out_dir = cfg.get('default_hooks', {}).get('checkpoint', {}).get('out_dir') or work_dir.parent
    return Path(source).resolve().parent in (work_dir, Path(out_dir, work_dir.name).resolve())


def _exit_code_of(cfg: Config, task: str) -> int:
    try:
        runner = start(cfg, task)
        if task == 'train' and is_rank_0(cfg) and shows_progress(cfg):
            _print_next(cfg, runner)
    except SystemExit as stop:  # raised by the StopSignalHook
        return stop.code
    except (EOFError, OSError, RuntimeError) as error:
        message = machine_failure(error)
        if message is None:
            raise
        print(f'error: {message}; --resume continues from the last checkpoint', file=sys.stderr)
        return 1
    return 0


def _print_next(cfg: Config, runner: Runner) -> None:
    """Print commands for the results of a run."""
    print(f'Next: mldr-kd report {shlex.quote(cfg.work_dir)}')
    checkpoint = runner.message_hub.runtime_info.get('last_ckpt')
    if 'student' in cfg.model and checkpoint and Path(checkpoint).is_file():
        paths = (shown_path(checkpoint), str(Path(cfg.work_dir, 'student')))
        print(f'      mldr-kd export {shlex.join(paths)}')


def join_processes(cfg: Config, over_gloo: bool) -> None:
    """Initialise the process group in the cases that mmengine does not handle.

    Raises:
        ConfigError: ``env_cfg.dist_cfg.timeout`` is not a positive number of seconds.
    """
    options = cfg.get('env_cfg', {}).get('dist_cfg', {})
    timeout = options.get('timeout')
    if timeout is not None:
        check_above_zero(**{'env_cfg.dist_cfg.timeout': timeout})
        timeout = timedelta(seconds=timeout)
    attempt = int(os.environ.get('TORCHELASTIC_RESTART_COUNT', 0))
    if over_gloo:
        # mmengine would first choose a GPU for this process.
        backend = 'gloo'
    elif cfg.launcher == 'pytorch' and attempt:
        torch.cuda.set_device(int(os.environ['LOCAL_RANK']))
        backend = options.get('backend', 'nccl')
    else:
        return
    # When torchrun restarts the processes, it keeps its store, which still holds the addresses of
    # processes that have ended. A new prefix keeps a process from reading them.
    store, rank, processes = next(torch.distributed.rendezvous('env://'))
    store = torch.distributed.PrefixStore(f'attempt{attempt}', store)
    torch.distributed.init_process_group(
        backend, store=store, rank=rank, world_size=processes, timeout=timeout
    )


def machine_failure(error: Exception) -> str | None:
    """Describe an error that the machine causes; None for any other error."""
    if isinstance(error, OSError) and error.errno in _DISK_ERRORS:
        return f'{error.filename or "a file"} cannot be read or written: {error.strerror}'
    if str(error).startswith('DataLoader worker (pid') or _is_of_a_lost_worker(error):
        return f'a data-loader worker was killed ({describe(error)})'
    # gloo raises plain RuntimeErrors.
    if torch.distributed.is_initialized() and (
        isinstance(error, torch.distributed.DistError)
        or any(words in str(error) for words in ('gloo', 'Connection closed by peer'))
    ):
        reason = describe(error).splitlines()[0]
        return f'another process of this run is gone or cannot be reached ({reason})'
    return None


def _is_of_a_lost_worker(error: Exception) -> bool:
    """Return whether a data-loader worker died while this process fetched a tensor from it.

    torch notices most dead workers, but not before the connection to one breaks.
    """
    frames = (frame for frame, _ in traceback.walk_tb(error.__traceback__))
    is_connection = isinstance(error, (ConnectionError, EOFError, FileNotFoundError))
    return is_connection and any(
        frame.f_globals.get('__name__') == 'multiprocessing.resource_sharer' for frame in frames
    )


def leave(code: int, over_gloo: bool) -> None:
    """End this process of a run."""
    if over_gloo:
        # A gloo thread that frees a tensor while Python shuts down aborts the process (one run in
        # six on a busy machine), so Python is not shut down.
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)
    if torch.distributed.is_initialized():
        torch.distributed.destroy_process_group()
    if code:
        sys.exit(code)

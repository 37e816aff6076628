"""Exact resume: a resumed run ends with the weights of an uninterrupted one."""

from __future__ import annotations

from typing import Any

import torch
from mmengine.dist import get_rank, get_world_size
from mmengine.hooks import Hook
from mmengine.optim import OptimWrapperDict
from mmengine.runner import BaseLoop, EpochBasedTrainLoop, Runner
from torch.utils.data import DataLoader

from mldr_kd_mm.datasets import ViewSampler
from mldr_kd_mm.engine.early_stopping import early_stopping_state, restore_early_stopping
from mldr_kd_mm.engine.parameter_groups import regroup
from mldr_kd_mm.engine.resume_check import (
    Changes,
    check_resume,
    length_of,
    log_changes,
    names_of,
)
from mldr_kd_mm.engine.schedules import rebuild_if_changed
from mldr_kd_mm.registry import HOOKS
from mldr_kd_mm.utils.checkpoint import load_checkpoint
from mldr_kd_mm.utils.random import seed_global_rng

_VALIDATED = 'last_validated_epoch'


@HOOKS.register_module()
class ExactResumeHook(Hook):
    """Resumes a run at any iteration so that it ends with the same weights.

    - Random numbers: the generators of each rank are seeded by (seed, iteration, rank) before each
      step, so their state need not be saved.
    - Data: the epoch continues at the next sample, without reading those before it. This requires
      ``train_dataloader.sampler`` to be a :class:`~mldr_kd_mm.datasets.ViewSampler`; with another
      sampler the epoch restarts, and the log says so.
    - An interrupted validation runs again.
    - With another number of processes or another batch size the run continues at the same sample
      and the same point of the learning-rate schedule, but not bit for bit; the log says so.
    - The config is compared with the one in the checkpoint. Another model, method, optimizer, data
      set or seed is refused in one line. All other changes are logged and take effect, including
      the learning rate. With another ``max_epochs``, schedules that end with the run are stretched.
    - An ``EarlyStoppingHook`` keeps its best score and its count of validations.

    mmengine itself forwards the data of iteration-based loops (``by_epoch=False``).
    """

    priority = 'LOWEST'  # a validation before training needs the other hooks to be set up

    def __init__(self) -> None:
        # The length of the run for which the schedules of its config were written.
        self._schedule_length: int | None = None
        self._changes: Changes | None = None

    def before_train(self, runner: Runner) -> None:
        """Run the validation that was interrupted."""
        loop = runner.train_loop
        if not (runner._resume and runner.val_loop and isinstance(loop, EpochBasedTrainLoop)):
            return
        due = runner.epoch >= loop.val_begin and (
            runner.epoch % loop.val_interval == 0 or runner.epoch == loop.max_epochs
        )
        done = runner.message_hub.runtime_info.get(_VALIDATED, 0) >= runner.epoch
        if due and not done and runner.iter == runner.epoch * len(loop.dataloader):
            runner.logger.info(
                f'resume: running the interrupted validation of epoch {runner.epoch}'
            )
            runner.val_loop.run()

    def before_train_epoch(self, runner: Runner) -> None:
        """Start the data loader where the epoch was interrupted."""
        _seed(runner, 'epoch', runner.epoch)
        loop = runner.train_loop
        if not isinstance(loop, EpochBasedTrainLoop):
            return
        done = runner.iter - runner.epoch * len(loop.dataloader)
        if done == 0:
            return
        runner.logger.info(f'resume: epoch {runner.epoch + 1} continues after {done} iterations')
        loop.dataloader.sampler.start_at(done * loop.dataloader.batch_size)
        # Hooks receive the number of the batch within the whole epoch.
        loop.run_iter = lambda number, batch: type(loop).run_iter(loop, done + number, batch)

    def after_train_epoch(self, runner: Runner) -> None:
        """Number the batches of the next epoch from 0."""
        vars(runner.train_loop).pop('run_iter', None)

    def before_train_iter(self, runner: Runner, batch_idx: int, data_batch: Any = None) -> None:
        """Seed the generators."""
        _seed(runner, 'iter', runner.iter)

    def before_val_epoch(self, runner: Runner) -> None:
        """Record which epoch is validated, for the checkpoints saved afterwards."""
        runner.message_hub.update_info(_VALIDATED, runner.epoch)

    def before_save_checkpoint(self, runner: Runner, checkpoint: dict) -> None:
        """Record what a resumed run compares itself with, and the state of early stopping."""
        checkpoint['meta'].update(
            steps=_steps(runner.train_loop.dataloader),
            sampler_seed=getattr(runner.train_loop.dataloader.sampler, 'seed', None),
            schedule_length=self._schedule_length or length_of(runner),
            early_stopping=early_stopping_state(runner),
            torch=str(torch.__version__),
        )
        if _has_groups(runner):
            checkpoint['meta']['parameter_groups'] = names_of(runner)

    def before_run(self, runner: Runner) -> None:
        """Check that the run can resume from its checkpoint, before anything is loaded.

        Raises:
            ConfigError: The checkpoint is of another model, method, optimizer, data set or seed, or
                has no optimizer state.
        """
        is_pending = runner._resume and runner._load_from and not runner._has_loaded
        if is_pending and isinstance(runner._train_loop, BaseLoop):
            checkpoint = load_checkpoint(str(runner._load_from), 'resume')
            self._changes = check_resume(runner, checkpoint)

    def after_load_checkpoint(self, runner: Runner, checkpoint: dict) -> None:
        """Convert the checkpoint's progress, schedules and early stopping to this run."""
        if not runner._resume:
            return
        if self._changes is None:  # a FlexibleRunner loads the checkpoint before it runs
            self._changes = check_resume(runner, checkpoint)
        if _has_groups(runner):
            regroup(checkpoint, names_of(runner))
        log_changes(runner, checkpoint['meta'], self._changes)
        _restore_seed(runner, checkpoint['meta'])
        has_moved = _convert_progress(runner, checkpoint['meta'])
        restore_early_stopping(runner, checkpoint['meta'])
        self._schedule_length = rebuild_if_changed(runner, checkpoint, self._changes, has_moved)


def _has_groups(runner: Runner) -> bool:
    """Return whether the optimizer's state in checkpoints is torch's; a strategy has its own."""
    return isinstance(runner, Runner) and not isinstance(runner.optim_wrapper, OptimWrapperDict)


def _restore_seed(runner: Runner, meta: dict) -> None:
    """Let a run without a seed in its config go on with the random one of its beginning.

    mmengine restores that of the Runner, but not that of the sampler, which has been built.
    """
    loader, seed = runner.train_loop.dataloader, meta.get('sampler_seed')
    has_own = (runner.cfg.get('randomness') or {}).get('seed') is not None
    if isinstance(loader.sampler, ViewSampler) and seed is not None and not has_own:
        loader.sampler.seed = seed


def _convert_progress(runner: Runner, meta: dict) -> bool:
    """Convert the progress to this run's iterations; warn if the run does not continue exactly.

    Returns:
        Whether the run continues at another iteration, or its epochs have another length.
    """
    loop = runner.train_loop
    then, now = meta.get('steps'), _steps(loop.dataloader)
    changed = then not in (None, now)
    if changed:
        runner.logger.warning(
            f'resume: saved by {then["processes"]} process(es) with batches of '
            f'{then["batch_size"]}, continues with {now["processes"]} and '
            f'{now["batch_size"]} at the same sample, but not bit for bit'
        )
    if not isinstance(loop, EpochBasedTrainLoop):
        return False
    saved = meta['iter']
    if changed:
        _convert(meta, then, now)
    _restart_epoch_if_needed(meta, runner)
    return changed or meta['iter'] != saved


def _restart_epoch_if_needed(meta: dict, runner: Runner) -> None:
    """Go back to the beginning of the epoch if its data loader cannot start in the middle."""
    loader = runner.train_loop.dataloader
    done = meta['iter'] - meta['epoch'] * len(loader)
    if done == 0 or (isinstance(loader.sampler, ViewSampler) and 0 < done <= len(loader)):
        return
    runner.logger.warning(
        f'resume: epoch {meta["epoch"] + 1} restarts; to continue after its {done} iterations, '
        "train_dataloader.sampler must be a 'ViewSampler' before and after the interruption"
    )
    meta['iter'] -= done


def _seed(runner: Runner, what: str, number: int) -> None:
    seed_global_rng(runner.seed, number, get_rank(), ('epoch', 'iter').index(what), 0)
    if torch.cuda.is_available():
        # Derived from the generator that has just been seeded.
        torch.cuda.manual_seed(int(torch.randint(2**62, ())))


def _steps(loader: DataLoader) -> dict[str, int]:
    size = loader.batch_size or 1  # None with a custom batch sampler
    return dict(processes=get_world_size(), batch_size=size, iters_per_epoch=len(loader))


def _convert(meta: dict, then: dict[str, int], now: dict[str, int]) -> None:
    """Convert progress to iterations of another size."""
    done = meta['iter'] - meta['epoch'] * then['iters_per_epoch']
    samples = done * then['processes'] * then['batch_size']
    done = min(samples // (now['processes'] * now['batch_size']), now['iters_per_epoch'])
    meta['iter'] = meta['epoch'] * now['iters_per_epoch'] + done

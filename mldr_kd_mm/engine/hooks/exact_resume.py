"""A resumed run that ends as if nothing had stopped it."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from mmengine.dist import get_rank, get_world_size
from mmengine.hooks import Hook
from mmengine.runner import EpochBasedTrainLoop, Runner
from torch.utils.data import DataLoader

from mldr_kd_mm.datasets import ViewSampler
from mldr_kd_mm.registry import HOOKS
from mldr_kd_mm.utils.random import seed_global_rng

_VALIDATED = 'last_validated_epoch'


@HOOKS.register_module()
class ExactResumeHook(Hook):
    """Makes a run that was stopped at any iteration end with the weights it would have had.

    - Random numbers: before each step the generators of each process are seeded by (seed,
      iteration, process), so that no state of theirs need be saved.
    - Data: an epoch goes on at the sample at which it was left, without reading those before it.
      For that ``train_dataloader.sampler`` must be a :class:`~mldr_kd_mm.datasets.ViewSampler`;
      with another one the epoch begins anew, which the log says.
    - A validation that was cut off is done again.
    - With another number of processes or another batch size the run goes on at the same sample
      and the same point of the learning rate's schedule, though not bit for bit; the log says so.

    A loop over iterations (``by_epoch=False``) is forwarded by mmengine's own means.
    """

    priority = 'LOWEST'  # a validation needs what the other hooks have set up

    def before_train(self, runner: Runner) -> None:
        """Validate the epoch whose validation was cut off."""
        loop = runner.train_loop
        if not (runner._resume and runner.val_loop and isinstance(loop, EpochBasedTrainLoop)):
            return
        due = runner.epoch >= loop.val_begin and (
            runner.epoch % loop.val_interval == 0 or runner.epoch == loop.max_epochs
        )
        done = runner.message_hub.runtime_info.get(_VALIDATED, 0) >= runner.epoch
        if due and not done and runner.iter == runner.epoch * len(loop.dataloader):
            runner.logger.info(f'resume: the validation of epoch {runner.epoch} comes first')
            runner.val_loop.run()

    def before_train_epoch(self, runner: Runner) -> None:
        """Let the data loader start where the epoch was left."""
        _seed(runner, 'epoch', runner.epoch)
        loop = runner.train_loop
        if not isinstance(loop, EpochBasedTrainLoop):
            return
        done = runner.iter - runner.epoch * len(loop.dataloader)
        if done == 0:
            return
        runner.logger.info(f'resume: epoch {runner.epoch + 1} goes on after {done} iterations')
        loop.dataloader.sampler.start_at(done * loop.dataloader.batch_size)
        # The hooks are told the number of a batch in its epoch.
        loop.run_iter = lambda number, batch: type(loop).run_iter(loop, done + number, batch)

    def after_train_epoch(self, runner: Runner) -> None:
        """Number the batches of the next epoch from 0 again."""
        vars(runner.train_loop).pop('run_iter', None)

    def before_train_iter(self, runner: Runner, batch_idx: int, data_batch: Any = None) -> None:
        """Seed the generators."""
        _seed(runner, 'iter', runner.iter)

    def before_val_epoch(self, runner: Runner) -> None:
        """Note which epoch is validated, for the checkpoints that are saved afterwards."""
        runner.message_hub.update_info(_VALIDATED, runner.epoch)

    def before_save_checkpoint(self, runner: Runner, checkpoint: dict) -> None:
        """Note what a step was made of."""
        checkpoint['meta']['steps'] = _steps(runner.train_loop.dataloader)

    def after_load_checkpoint(self, runner: Runner, checkpoint: dict) -> None:
        """Fit the checkpoint's progress to this run; say if it does not go on bit for bit."""
        if not runner._resume:
            return
        loop = runner.train_loop
        then, now = checkpoint['meta'].get('steps'), _steps(loop.dataloader)
        changed = then not in (None, now)
        if changed:
            runner.logger.warning(
                f'resume: saved by {then["processes"]} process(es) with batches of '
                f'{then["batch_size"]}, goes on with {now["processes"]} and {now["batch_size"]}: '
                'at the same sample, but not bit for bit'
            )
        if isinstance(loop, EpochBasedTrainLoop):
            if changed:
                _convert(checkpoint, then, now)
            _fit(checkpoint['meta'], runner)


def _fit(meta: dict, runner: Runner) -> None:
    """Go back to the beginning of an epoch that cannot be left and entered in between."""
    loader = runner.train_loop.dataloader
    done = meta['iter'] - meta['epoch'] * len(loader)
    if done == 0 or (isinstance(loader.sampler, ViewSampler) and 0 < done <= len(loader)):
        return
    runner.logger.warning(
        f'resume: epoch {meta["epoch"] + 1} begins anew: to go on after its {done} iterations '
        "train_dataloader.sampler must be a 'ViewSampler', as it was"
    )
    meta['iter'] -= done


def _seed(runner: Runner, what: str, number: int) -> None:
    seed_global_rng(runner.seed, number, get_rank(), ('epoch', 'iter').index(what), 0)
    if torch.cuda.is_available():
        # By a number of the generator that has just been seeded.
        torch.cuda.manual_seed(int(torch.randint(2**62, ())))


def _steps(loader: DataLoader) -> dict[str, int]:
    size = loader.batch_size or 1  # a batch sampler of its own has none
    return dict(processes=get_world_size(), batch_size=size, iters_per_epoch=len(loader))


def _convert(checkpoint: dict, then: dict[str, int], now: dict[str, int]) -> None:
    """Count the checkpoint's progress in steps of another size."""
    meta = checkpoint['meta']
    done = meta['iter'] - meta['epoch'] * then['iters_per_epoch']
    samples = done * then['processes'] * then['batch_size']
    done = min(samples // (now['processes'] * now['batch_size']), now['iters_per_epoch'])
    meta['iter'] = meta['epoch'] * now['iters_per_epoch'] + done
    ratio = now['iters_per_epoch'] / then['iters_per_epoch']
    for state in _scheduler_states(checkpoint.get('param_schedulers', [])):
        if not state['by_epoch']:
            # All else depends on how many iterations an epoch has.
            kept = dict(
                last_step=round(state['last_step'] * ratio),  # from where the schedule begins
                _global_step=meta['iter'],
                _last_value=state['_last_value'],
            )
            state.clear()
            state.update(kept)


def _scheduler_states(states: list[dict] | dict[str, list[dict]]) -> Iterator[dict]:
    for group in states.values() if isinstance(states, dict) else [states]:
        yield from group

"""Rebuild the learning-rate schedules of a resumed run."""

from __future__ import annotations

import warnings
from collections.abc import Iterable, Mapping
from typing import Any

from mmengine.optim import OptimWrapper, OptimWrapperDict
from mmengine.optim.scheduler.param_scheduler import INF
from mmengine.runner import EpochBasedTrainLoop, IterBasedTrainLoop, Runner

from mldr_kd_mm.engine.resume_check import Changes, length_of, unit_of
from mldr_kd_mm.utils.errors import ConfigError, is_number

RATES = ('eta_min', 'eta_max', 'min_value')
"""Learning rates in the config of a schedule."""


def stretch_schedules(config: Any, before: Mapping[bool, int], now: Mapping[bool, int]) -> Any:
    """Adapt schedules that end with the run to another length of the run.

    Warm-ups, milestones and restarts stay where they are.

    Args:
        config: Config of a parameter scheduler, or a list of them.
        before: Length of the run for which they were written, in epochs (True) and iterations.
        now: Length of the run, likewise.

    Returns:
        The configs for the new length. The argument is not changed.
    """
    if isinstance(config, (list, tuple)):
        return [stretch_schedules(each, before, now) for each in config]
    config = dict(config)
    if _is_warm_up(str(config.get('type')), config):
        return config
    by_epoch = config.get('by_epoch', True)
    old, new, begin = before[by_epoch], now[by_epoch], config.get('begin', 0)
    changed = {name: new for name in ('end', 'total_steps') if config.get(name) == old}
    # The last value of a cosine is either that of the last epoch or would be that of the next.
    if 'T_max' in config and begin + config['T_max'] in (old - 1, old):
        changed['T_max'] = config['T_max'] + new - old
    too_short = new <= begin or changed.get('T_max', 1) < 1
    return config if too_short else config | changed


def check_unit(scheduler: Any, field: str) -> None:
    """Check that a schedule of a run that counts iterations does the same.

    Args:
        scheduler: The schedule.
        field: Its name, for the error.

    Raises:
        ConfigError: It counts epochs, so that it would never step.
    """
    # One that follows a metric steps after each validation.
    if scheduler.by_epoch and not getattr(scheduler, 'need_val_args', False):
        raise ConfigError(
            f'{field}.by_epoch=True: must be False, with all lengths in iterations, as train_cfg '
            'counts iterations, and the schedule would never step'
        )


def check_units(runner: Runner) -> None:
    """Check that the schedules of a run that counts iterations do the same.

    Args:
        runner: The runner, with its schedules.

    Raises:
        ConfigError: One counts epochs.
    """
    if isinstance(runner.train_loop, IterBasedTrainLoop):
        for scheduler in _flatten(runner.param_schedulers):
            check_unit(scheduler, f'param_scheduler: {type(scheduler).__name__}')


def warn_of_cut_off(runner: Runner) -> None:
    """Warn if the run ends before a schedule of the learning rate does, above all its warm-up.

    Args:
        runner: The runner, with its schedules.
    """
    by_epoch = isinstance(runner.train_loop, EpochBasedTrainLoop)
    unit, field = unit_of(runner)
    length, per_epoch = length_of(runner), _iters_per_epoch(runner) or 1
    ends = {True: 0, False: 0}
    for scheduler in _flatten(runner.param_schedulers):
        if scheduler.param_name != 'lr' or (scheduler.by_epoch and not by_epoch):
            continue
        end = _last_change(scheduler)
        if scheduler.by_epoch != by_epoch:
            end = -(-end // per_epoch)
        if length < end:
            is_warm_up = _is_warm_up(type(scheduler).__name__, vars(scheduler))
            ends[is_warm_up] = max(ends[is_warm_up], end)
    if ends[True]:
        problem = f'the warm-up, which reaches the full learning rate in {unit} {ends[True]}'
    elif ends[False]:
        problem = f"the learning rate's schedule, which is for {ends[False]} {unit}s"
    else:
        return
    runner.logger.warning(
        f'train_cfg.{field}={length}: training ends before {problem}; shorten param_scheduler, too'
    )


def rebuild_if_changed(
    runner: Runner, checkpoint: dict, changes: Changes, has_moved: bool
) -> int | None:
    """Let changed settings of the optimizer and its schedules take effect in a resumed run.

    Args:
        runner: The runner, with a new optimizer.
        checkpoint: Content of the checkpoint; it is changed.
        changes: What differs between the run's config and the stored one.
        has_moved: Whether the run continues at another iteration than the saved one.

    Returns:
        The length of the run for which the schedules of its config were written. It differs from
        the run's if ``max_epochs`` has changed and the schedules have not.
    """
    meta, now = checkpoint['meta'], length_of(runner)
    before = {change.field: change.before for change in changes.applied}
    written_for = meta.get('schedule_length', before.get(f'train_cfg.{unit_of(runner)[1]}', now))
    # A changed learning rate changes rates of the schedules, but not their length.
    of_schedules = (field for field in before if field.startswith('param_scheduler'))
    is_new = any(field.rpartition('.')[2] not in RATES for field in of_schedules)
    if is_new or not _is_length(written_for):
        written_for = now
    is_complete = runner.param_schedulers is None or 'param_schedulers' in checkpoint
    if is_complete and not has_moved and not changes.of_schedule:
        return written_for
    config = runner.cfg.get('param_scheduler')
    if config is not None and written_for != now:
        config = stretch_schedules(config, _lengths(runner, written_for), _lengths(runner, now))
    if not rebuild_schedules(runner, checkpoint, config):
        runner.logger.warning(
            'resume: the schedules follow a metric and keep their state; a changed learning rate '
            'has no effect'
        )
        return written_for
    for group in checkpoint.get('optimizer', {}).get('param_groups', [])[:1]:
        stretched = f' instead of {written_for}' if written_for != now else ''
        runner.logger.info(
            f'resume: the schedules are rebuilt for {unit_of(runner)[1]}={now}{stretched}; after '
            f'iteration {meta["iter"]} the learning rate is {group["lr"]:.4g}'
        )
    return written_for


def rebuild_schedules(runner: Runner, checkpoint: dict, config: Any) -> bool:
    """Make a checkpoint resume with the settings of a config instead of the saved ones.

    The schedules are built anew and advanced to the progress of the checkpoint. Their states and
    the settings of the optimizer, such as learning rate and weight decay, replace the saved ones.

    Args:
        runner: The runner, with a new optimizer.
        checkpoint: Content of the checkpoint; it is changed.
        config: Config of the schedules; None to advance those of the runner.

    Returns:
        Whether it was possible. Schedules that follow a validation metric keep their saved states.
    """
    schedulers = runner.param_schedulers
    if any(getattr(each, 'need_val_args', False) for each in _flatten(schedulers)):
        return False
    if config is not None:
        for wrapper in _wrappers(runner).values():
            for group in wrapper.param_groups:
                _reset(group)
        schedulers = _build(runner, config)
    if schedulers is not None:
        _advance(_flatten(schedulers), checkpoint['meta']['iter'], _iters_per_epoch(runner))
        checkpoint['param_schedulers'] = (
            {name: _states(group) for name, group in schedulers.items()}
            if isinstance(schedulers, dict)
            else _states(schedulers)
        )
    for name, wrapper in _wrappers(runner).items():
        saved = checkpoint.get('optimizer', {})
        _copy_settings(wrapper, saved if name is None else saved[name])
    return True


def _last_change(scheduler: Any) -> int:
    """Return the epoch or iteration for which a schedule is written, 0 if for none.

    A Runner ends each schedule with the run, unless its config says otherwise.
    """
    if getattr(scheduler, 'factor', None) == 1:
        return 0
    phases = [*getattr(scheduler, 'milestones', []), getattr(scheduler, 'T_max', 0)]
    ends = [scheduler.end, *(scheduler.begin + phase for phase in phases)]
    return max((end for end in ends if end < INF), default=0)


def _is_warm_up(kind: str, arguments: Mapping[str, Any]) -> bool:
    """Return whether a schedule ends with the full value."""
    return kind.startswith(('Linear', 'Constant')) and arguments.get('end_factor', 1) >= 1


def _flatten(schedulers: dict[str, list] | list | None) -> list:
    groups = schedulers.values() if isinstance(schedulers, dict) else [schedulers or []]
    return [scheduler for group in groups for scheduler in group]


def _lengths(runner: Runner, length: int) -> dict[bool, int]:
    """Return a length in epochs (True) and in iterations (False)."""
    return {True: length, False: length * (_iters_per_epoch(runner) or 1)}


def _is_length(value: Any) -> bool:
    return is_number(value, int) and value > 0


def _wrappers(runner: Runner) -> dict[str | None, OptimWrapper]:
    wrapper = runner.optim_wrapper
    return dict(wrapper.items()) if isinstance(wrapper, OptimWrapperDict) else {None: wrapper}


def _reset(group: dict) -> None:
    """Undo the first steps of schedules in a group of parameters."""
    for name in [name for name in group if name.startswith('initial_')]:
        group[name.removeprefix('initial_')] = group[name]


def _build(runner: Runner, config: Any) -> Any:
    if isinstance(runner, Runner):
        return runner.build_param_scheduler(config)
    return runner.strategy.build_param_scheduler(config, runner.optim_wrapper)


def _iters_per_epoch(runner: Runner) -> int | None:
    """Return None for an iteration-based loop, in which schedules count no epochs."""
    loop = runner.train_loop
    return len(loop.dataloader) if isinstance(loop, EpochBasedTrainLoop) else None


def _advance(schedulers: Iterable, iterations: int, iters_per_epoch: int | None) -> None:
    """Step schedules as mmengine's ParamSchedulerHook does."""
    by_iteration = [scheduler for scheduler in schedulers if not scheduler.by_epoch]
    by_epoch = [scheduler for scheduler in schedulers if scheduler.by_epoch]
    with warnings.catch_warnings():
        # torch and mmengine warn about schedules that step before the optimizer.
        warnings.simplefilter('ignore')
        for iteration in range(1, iterations + 1):
            ends_epoch = iters_per_epoch and iteration % iters_per_epoch == 0
            for scheduler in (*by_iteration, *(by_epoch if ends_epoch else ())):
                scheduler.step()


def _states(schedulers: Iterable) -> list[dict]:
    return [scheduler.state_dict() for scheduler in schedulers]


def _copy_settings(wrapper: OptimWrapper, saved: dict) -> None:
    """Replace the settings in an optimizer's saved state."""
    pairs = [*zip(saved.get('param_groups', []), wrapper.optimizer.param_groups, strict=False)]
    if wrapper.base_param_settings is not None and 'base_param_settings' in saved:
        pairs.append((saved['base_param_settings'], wrapper.base_param_settings))
    for old, new in pairs:
        old.update({name: value for name, value in new.items() if name != 'params'})

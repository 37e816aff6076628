"""Summary, expected time and progress bar of a run."""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping
from typing import Any

from mmengine.device import get_device
from mmengine.dist import get_world_size
from mmengine.hooks import Hook
from mmengine.runner import Runner
from torch import nn

from mldr_kd_mm.evaluation.logged_run import ACCURACY
from mldr_kd_mm.models.distillers.distiller import Distiller
from mldr_kd_mm.registry import HOOKS
from mldr_kd_mm.utils.dist import unwrap_model
from mldr_kd_mm.utils.logging import plural
from mldr_kd_mm.utils.progress import close_bars, is_open, open_bars, remove_bar, show_bar

# The first steps are slower than the rest, so the steps after them are timed.
_FIRST_STEPS, _TIMED_STEPS = 5, 20


@HOOKS.register_module()
class ProgressHook(Hook):
    """Logs a summary of the run and the expected time, and shows a progress bar.

    The summary before training lists the teacher and its accuracy, the student, losses, taps, data
    and steps. The expected time follows after the first steps.

    If stderr is a terminal and ``rich`` is installed, a bar shows steps, loss, accuracy and the
    remaining time, and a second bar the validation. Log lines appear above the bars. Otherwise the
    console shows only mmengine's log. The hook does not affect the results of a run.

    Args:
        enabled: Whether to log and show anything.
    """

    # Runs after TeacherAccuracyHook, whose result it logs, and before StopSignalHook, which exits.
    priority = 95

    def __init__(self, enabled: bool = True) -> None:
        self.enabled = enabled
        self._accuracy: float | None = None
        self._started = 0.0

    def before_train(self, runner: Runner) -> None:
        """Log the summary and show the bar."""
        if not self.enabled:
            return
        facts = list(_facts(runner))
        width = max(len(name) for name, _ in facts)
        lines = [f'  {name:<{width}}  {value}' for name, value in facts]
        runner.logger.info('\n'.join(['Training setup:', *lines]))
        self._first = runner.iter
        open_bars()
        show_bar('train', completed=runner.iter, total=runner.max_iters)

    def after_train_iter(
        self, runner: Runner, batch_idx: int, data_batch: Any = None, outputs: Any = None
    ) -> None:
        """Update the bar; log the expected time once it is known."""
        if not self.enabled:
            return
        done = runner.iter + 1
        if done == self._first + _FIRST_STEPS:
            self._started = time.monotonic()
        elif done == self._first + _FIRST_STEPS + _TIMED_STEPS:
            step = (time.monotonic() - self._started) / _TIMED_STEPS
            left = runner.max_iters - done
            runner.logger.info(
                f'Expected time: {_duration(step * left)} for the remaining {left} steps at '
                f'{step:.3g} s per step, measured over {_TIMED_STEPS} steps'
            )
        if is_open():
            # Of a GPU, the hub has the loss of the last line of the log.
            losses = runner.message_hub.log_scalars.get('train/loss')
            loss = losses.current() if losses else None
            show_bar('train', completed=done, state=self._state(runner, loss))

    def after_train(self, runner: Runner) -> None:
        """Remove the bar."""
        close_bars()

    def before_val_epoch(self, runner: Runner) -> None:
        """Show a bar for the validation."""
        self._begin(runner, 'val', runner.val_dataloader)

    def after_val_iter(
        self, runner: Runner, batch_idx: int, data_batch: Any = None, outputs: Any = None
    ) -> None:
        """Update the bar."""
        show_bar('val', completed=batch_idx + 1)

    def after_val_epoch(self, runner: Runner, metrics: dict[str, float] | None = None) -> None:
        """Remove the bar and keep the accuracy for the training bar."""
        self._accuracy = (metrics or {}).get(ACCURACY)
        remove_bar('val')

    def before_test_epoch(self, runner: Runner) -> None:
        """Show a bar for the test."""
        self._begin(runner, 'test', runner.test_dataloader)

    def after_test_iter(
        self, runner: Runner, batch_idx: int, data_batch: Any = None, outputs: Any = None
    ) -> None:
        """Update the bar."""
        show_bar('test', completed=batch_idx + 1)

    def after_test_epoch(self, runner: Runner, metrics: dict[str, float] | None = None) -> None:
        """Remove the bar."""
        remove_bar('test')

    def _begin(self, runner: Runner, name: str, loader: Any) -> None:
        if self.enabled:
            open_bars()
            show_bar(name, completed=0, total=len(loader))

    def _state(self, runner: Runner, loss: float | None) -> str:
        parts = [f'epoch {runner.epoch + 1}/{runner.max_epochs}']
        if loss is not None:
            parts.append(f'loss {loss:.3f}')
        if self._accuracy is not None:
            parts.append(f'accuracy {self._accuracy:.1f} %')
        if cached := _cached(runner):
            parts.append(cached)
        return '  '.join(parts)


def _facts(runner: Runner) -> Iterator[tuple[str, str]]:
    """Yield the names and values of the summary."""
    model = unwrap_model(runner.model)
    config = runner.cfg.get('model')
    if isinstance(model, Distiller):
        yield from _facts_of_distiller(runner, model, config)
    else:
        yield 'model', _summarize_model(model, config)
    loader = runner.train_dataloader
    batch = f'{loader.batch_size}'
    if get_world_size() > 1:
        batch += f' x {get_world_size()} processes'
    yield 'data', f'{len(loader.dataset)} images, batches of {batch}'
    steps = f'{runner.max_iters} in {plural(runner.max_epochs, "epoch")}'
    yield 'steps', steps if runner.iter == 0 else f'{steps}, {runner.iter} of them done'
    yield 'device', f'{get_device()}, {type(runner.optim_wrapper).__name__}'


def _facts_of_distiller(runner: Runner, model: Distiller, config: Any) -> Iterator[tuple[str, str]]:
    teacher = model.teacher
    given = 'its own weights' if teacher.has_weights else 'weights of its config'
    source = teacher.checkpoint or given
    yield 'teacher', f'{_summarize_model(teacher.model, teacher.config)}, {source}'
    metrics = runner.message_hub.runtime_info.get('teacher_metrics', {})
    if ACCURACY in metrics:
        yield "teacher's accuracy", f'{metrics[ACCURACY]:.2f} % on the validation set'
    own = config.get('student') if isinstance(config, Mapping) else None
    yield 'student', _summarize_model(model.student, own)
    for comparison in model.losses:
        reads = ', '.join(comparison.student)
        yield f'loss {comparison.name}', f'{_type(comparison.config)} of {reads}'
    if model.neck is not None:
        yield 'neck', _summarize_model(model.neck, None)
    taps = model.tapped_student.recorder.taps
    if isinstance(taps, Mapping):
        yield 'taps', ', '.join(f'{name} {path}' for name, path in taps.items())
    if model.teacher_cache is not None:
        yield 'teacher cache', 'outputs are recorded once and read afterwards'


def _summarize_model(model: nn.Module, config: Any) -> str:
    """Return a model's name and number of parameters."""
    name = type(model).__name__
    if isinstance(config, Mapping):
        backbone = config.get('backbone') or config
        name = backbone.get('model_name') or _type(backbone)
    count = sum(parameter.numel() for parameter in model.parameters())
    return f'{name}, {count / 1e6:.2f} M parameters'


def _type(config: Mapping) -> str:
    kind = config.get('type')
    return getattr(kind, '__name__', str(kind).rpartition('.')[2])


def _cached(runner: Runner) -> str:
    """Return whether the teacher cache is recorded or read; empty without a cache."""
    model = unwrap_model(runner.model)
    if getattr(model, 'teacher_cache', None) is None:
        return ''
    views = runner.train_dataloader.batch_sampler.sampler.views
    return 'recording the teacher' if runner.epoch < views else 'reading the teacher'


def _duration(seconds: float) -> str:
    minutes, seconds = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    if hours:
        return f'{hours} h {minutes} min'
    return f'{minutes} min {seconds} s' if minutes else f'{seconds} s'

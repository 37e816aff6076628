"""What a run shows on the console: setup, one line per epoch, a progress bar and the result."""

from __future__ import annotations

import math
import time
from collections.abc import Iterator, Mapping
from typing import Any

from mmengine.device import get_device
from mmengine.dist import get_world_size
from mmengine.hooks import Hook
from mmengine.runner import BaseLoop, EpochBasedTrainLoop, Runner
from torch import nn

from mldr_kd_mm.engine.knn_loop import KNNLoop
from mldr_kd_mm.evaluation.logged_run import ACCURACY, owner_of
from mldr_kd_mm.models.distillers.distiller import Distiller
from mldr_kd_mm.registry import HOOKS
from mldr_kd_mm.utils.dist import unwrap_model
from mldr_kd_mm.utils.errors import is_number
from mldr_kd_mm.utils.logging import percent, plural, shown_path, tell
from mldr_kd_mm.utils.progress import close_bars, is_open, open_bars, remove_bar, show_bar

# The first steps are slower than the rest, so the steps after them are timed.
_FIRST_STEPS, _TIMED_STEPS = 5, 20
_LARGEST_ERROR = 5  # points


@HOOKS.register_module()
class ProgressHook(Hook):
    """Shows the setup, the progress and the result of a run on the console.

    The setup lists the teacher and its accuracy, the student, losses, taps, data and steps. Each
    epoch has one line with the learning rate, the mean loss and the student's own part of it, the
    accuracy and the time; a run that counts iterations has one line per validation. The result
    states the duration, the accuracies and the checkpoint. These lines are shown under
    :func:`~mldr_kd_mm.utils.logging.quiet_console`, and the log file has them too.

    If stderr is a terminal, a bar shows steps, loss, accuracy and the remaining time, and a second
    bar the validation. Lines appear above the bars. The hook warns about a validation set of fewer
    than 100 images, where the standard error of an accuracy can be above 5 points. It does not
    affect the results of a run.

    Args:
        enabled: Whether to log and show anything.
    """

    # Runs after TeacherAccuracyHook, whose result it logs, and before StopSignalHook, which exits.
    priority = 95

    def __init__(self, enabled: bool = True) -> None:
        self.enabled = enabled
        self._accuracy: float | None = None
        self._metric = 'accuracy'
        self._started = 0.0
        # Steps since the last line, when the first of them began, and the line of a trained epoch
        # that waits for its validation.
        self._steps, self._since = 0, 0.0
        self._line: list[str] | None = None

    def before_train(self, runner: Runner) -> None:
        """Show the setup and the bar."""
        if not self.enabled:
            return
        if isinstance(runner.val_loop, KNNLoop):
            self._metric = 'kNN accuracy'
        facts = list(_facts(runner))
        width = max(len(name) for name, _ in facts)
        lines = [f'  {name:<{width}}  {value}' for name, value in facts]
        tell('\n'.join(['Training setup:', *lines]))
        if runner.val_loop is not None:
            _judge_size(runner, len(runner.val_dataloader.dataset))
        self._first = runner.iter
        self._began = self._since = time.monotonic()
        self._steps, self._line = 0, None
        open_bars()
        show_bar('train', completed=runner.iter, total=runner.max_iters)

    def after_train_iter(
        self, runner: Runner, batch_idx: int, data_batch: Any = None, outputs: Any = None
    ) -> None:
        """Update the bar; log the expected time once it is known."""
        if not self.enabled:
            return
        self._steps += 1
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
            # On a GPU, the hub has the loss of the last logged line.
            losses = runner.message_hub.log_scalars.get('train/loss')
            loss = losses.current() if losses else None
            show_bar('train', completed=done, state=self._state(runner, loss))

    def after_train_epoch(self, runner: Runner) -> None:
        """Keep the line of the epoch until it has been validated."""
        if self.enabled and isinstance(runner.train_loop, EpochBasedTrainLoop):
            self._line = self._describe(runner, 'epoch', runner.epoch + 1, runner.max_epochs)

    def before_train_epoch(self, runner: Runner) -> None:
        """Show the line of an epoch without validation."""
        self._show_line({})

    def after_train(self, runner: Runner) -> None:
        """Remove the bar and show the result of the run."""
        self._show_line({})
        close_bars()
        if self.enabled:
            tell(_describe_result(runner, self._metric, time.monotonic() - self._began))

    def before_val_epoch(self, runner: Runner) -> None:
        """Show a bar for the validation."""
        self._begin(runner, 'val', runner.val_dataloader)
        # runner.train_loop would build the loop and its data set, also for validation alone.
        loop = runner._train_loop
        if self._steps and isinstance(loop, BaseLoop) and not self._line and self.enabled:
            self._line = self._describe(runner, 'step', runner.iter, runner.max_iters)

    def after_val_iter(
        self, runner: Runner, batch_idx: int, data_batch: Any = None, outputs: Any = None
    ) -> None:
        """Update the bar."""
        show_bar('val', completed=batch_idx + 1)

    def after_val_epoch(self, runner: Runner, metrics: dict[str, float] | None = None) -> None:
        """Remove the bar, show the line of the epoch, and keep the accuracy for the bar."""
        self._accuracy = (metrics or {}).get(ACCURACY)
        remove_bar('val')
        self._show_line(metrics or {})

    def before_test_epoch(self, runner: Runner) -> None:
        """Show a bar for the test."""
        self._begin(runner, 'test', runner.test_dataloader)

    def after_test_iter(
        self, runner: Runner, batch_idx: int, data_batch: Any = None, outputs: Any = None
    ) -> None:
        """Update the bar."""
        show_bar('test', completed=batch_idx + 1)

    def after_test_epoch(self, runner: Runner, metrics: dict[str, float] | None = None) -> None:
        """Remove the bar and show the metrics."""
        remove_bar('test')
        numbers = {name: value for name, value in (metrics or {}).items() if is_number(value)}
        if self.enabled and numbers:
            tell('test  ' + '  '.join(f'{name} {value:.2f}' for name, value in numbers.items()))

    def _describe(self, runner: Runner, unit: str, done: int, total: int) -> list[str]:
        """Return the parts of a line: the steps since the last one, their rate and losses."""
        parts = [f'{unit} {done:>{len(str(total))}}/{total}']
        scalars = runner.message_hub.log_scalars
        if 'train/lr' in scalars:
            parts.append(f'lr {scalars["train/lr"].current():.2e}')
        for label, name in (('loss', 'train/loss'), ('student', 'train/loss_student')):
            mean = scalars[name].mean(self._steps) if name in scalars else 0
            if mean:  # the student's own loss is 0 without labels
                parts.append(f'{label} {mean:.4f}')
        self._steps = 0
        return parts

    def _show_line(self, metrics: Mapping[str, Any]) -> None:
        if self._line is None:
            return
        numbers = [(name, value) for name, value in metrics.items() if is_number(value)]
        if ACCURACY in metrics:
            self._line.append(f'{self._metric} {percent(metrics[ACCURACY])}')
        elif numbers:
            self._line.append('{} {:.2f}'.format(*numbers[0]))
        now = time.monotonic()
        tell('  '.join([*self._line, _duration(now - self._since)]))
        self._line, self._since = None, now

    def _begin(self, runner: Runner, name: str, loader: Any) -> None:
        if self.enabled:
            open_bars()
            show_bar(name, completed=0, total=len(loader))

    def _state(self, runner: Runner, loss: float | None) -> str:
        parts = [f'epoch {runner.epoch + 1}/{runner.max_epochs}']
        if loss is not None:
            parts.append(f'loss {loss:.3f}')
        if self._accuracy is not None:
            parts.append(f'{self._metric} {percent(self._accuracy)}')
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
    if runner.val_loop is None:
        yield 'validation', 'none: the accuracy is not measured'
    steps = f'{runner.max_iters} in {plural(runner.max_epochs, "epoch")}'
    done = f', {runner.iter} of them done' if runner.iter else ''
    yield 'steps', f'{steps}{done}, on {get_device()} with {type(runner.optim_wrapper).__name__}'
    yield 'log', shown_path(runner.logger.log_file)


def _judge_size(runner: Runner, images: int) -> None:
    """Warn about a validation set that is too small to compare models."""
    error = 50 / math.sqrt(max(images, 1))  # of an accuracy of 50 %, in points
    if error > _LARGEST_ERROR:
        runner.logger.warning(
            f'the validation set has {plural(images, "image")}: the standard error of the accuracy '
            f'can be {error:.1f} points; validate on more images to compare models'
        )


def _describe_result(runner: Runner, metric: str, seconds: float) -> str:
    """Return the line about a run that has ended."""
    hub = runner.message_hub
    history = hub.log_scalars.get(f'val/{ACCURACY}')
    accuracies = []
    if history is not None:
        values = history.data[0]
        accuracies.append(f'{metric} {percent(values[-1])}, best {percent(max(values))}')
    teacher = hub.runtime_info.get('teacher_metrics', {})
    if ACCURACY in teacher:
        accuracies.append(f'teacher {percent(teacher[ACCURACY])}')
    written = hub.runtime_info.get('last_ckpt')
    result = ', '.join([f'Trained in {_duration(seconds)}', *accuracies])
    return f'{result}; wrote {shown_path(written)}' if written else result


def _facts_of_distiller(runner: Runner, model: Distiller, config: Any) -> Iterator[tuple[str, str]]:
    for label, teacher, _ in model.teachers:
        given = 'its own weights' if teacher.has_weights else 'weights of its config'
        source = teacher.checkpoint or given
        yield label, f'{_summarize_model(teacher.model, teacher.config)}, {source}'
    metrics = runner.message_hub.runtime_info.get('teacher_metrics', {})
    for name, value in metrics.items():
        owner, metric = owner_of(name)
        if metric == ACCURACY:
            yield f"{owner}'s accuracy", f'{percent(value)} on the validation set'
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
    if _has_cache(model):
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
    if not _has_cache(model):
        return ''
    views = runner.train_dataloader.batch_sampler.sampler.views
    return 'recording the teacher' if runner.epoch < views else 'reading the teacher'


def _has_cache(model: nn.Module) -> bool:
    return isinstance(model, Distiller) and any(
        teacher.cache is not None for _, teacher, _ in model.teachers
    )


def _duration(seconds: float) -> str:
    minutes, seconds = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    if hours:
        return f'{hours} h {minutes} min'
    return f'{minutes} min {seconds} s' if minutes else f'{seconds} s'

"""Figures of teacher and student during training."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from mmengine.dist import is_main_process
from mmengine.hooks import Hook
from mmengine.runner import BaseLoop, EpochBasedTrainLoop, Runner
from mmengine.visualization import MLflowVisBackend
from torch.nn.parallel import DistributedDataParallel

from mldr_kd_mm.evaluation.measures import agreement, expected_calibration_error, softmax
from mldr_kd_mm.evaluation.observer import Observations, Observer
from mldr_kd_mm.models.distillers.distiller import Distiller
from mldr_kd_mm.registry import HOOKS
from mldr_kd_mm.utils.errors import check_positive, check_switch


@HOOKS.register_module()
class FigureHook(Hook):
    """Sends figures of some validation batches to all visualizer backends.

    Images: the class relations of teacher and student and their difference, the fusion weights of
    the neck by class, calibration and the CKA of the stages. Scalars: ``observed/agreement``,
    ``observed/student_ece``, ``observed/teacher_ece``, and the lowest and highest fusion weight of
    a class for each stage, ``observed/fusion_stage1_lowest`` and so on. All come from the main
    process's share of the batches.

    Training is unaffected: the model does not change and no random number is drawn. A figure that
    cannot be drawn is a warning. Nothing is drawn if the model is not a :class:`Distiller` or is
    sharded over processes, or if the student or the teacher has no head.

    Args:
        interval: Draw at the first validation, every ``interval`` validations after it, and at the
            last.
        batches: Number of batches, spread evenly over the validation set.
        enabled: Whether to draw figures.

    Raises:
        ConfigError: A number is below 1, or ``enabled`` is not a bool.
    """

    priority = 'LOW'

    def __init__(self, interval: int = 10, batches: int = 4, enabled: bool = True) -> None:
        check_positive(interval=interval, batches=batches)
        check_switch(enabled=enabled)
        self.interval = interval
        self.batches = batches
        self.enabled = enabled
        self._validations = 0
        self._observer: Observer | None = None
        self._chosen: set[int] = set()

    def before_val_epoch(self, runner: Runner) -> None:
        """Choose the batches if figures are due."""
        self._observer = None
        # runner.train_loop would build the loop and its data set, also for validation alone.
        if not isinstance(runner._train_loop, BaseLoop):
            return
        due = self._validations % self.interval == 0 or _is_last(runner)
        self._validations += 1
        model = _distiller(runner)
        if model is None or not (self.enabled and due and is_main_process()):
            return
        self._observer = Observer(model)
        last = len(runner.val_dataloader) - 1
        self._chosen = set(np.linspace(0, last, min(self.batches, last + 1)).round().astype(int))

    def after_val_iter(
        self,
        runner: Runner,
        batch_idx: int,
        data_batch: dict[str, Any] | None = None,
        outputs: Sequence | None = None,
    ) -> None:
        """Observe a batch with the weights that are validated, such as those of EMA."""
        if self._observer is None or batch_idx not in self._chosen:
            return
        try:
            batch = _distiller(runner).data_preprocessor(data_batch, False)
            self._observer.add(batch['inputs'], batch['data_samples'])
        except Exception as error:
            self._give_up(runner, error)

    def after_val_epoch(self, runner: Runner, metrics: dict[str, float] | None = None) -> None:
        """Draw the figures."""
        if self._observer is None:
            return
        try:
            _draw(runner, self._observer.observations())
        except Exception as error:
            self._give_up(runner, error)
        self._observer = None

    def _give_up(self, runner: Runner, error: Exception) -> None:
        # A figure must never end a training run, so any error is caught.
        self._observer = None
        runner.logger.warning(f'FigureHook: no figures: {type(error).__name__}: {error}')


def _distiller(runner: Runner) -> Distiller | None:
    """Return the model if it is a Distiller of models with heads and not sharded."""
    model = runner.model
    model = model.module if isinstance(model, DistributedDataParallel) else model
    if not isinstance(model, Distiller):
        return None
    return model if model.tapped_student.has_head and model.teacher.has_head else None


def _is_last(runner: Runner) -> bool:
    loop = runner.train_loop
    if isinstance(loop, EpochBasedTrainLoop):
        return runner.epoch >= loop.max_epochs
    return runner.iter >= loop.max_iters


def _draw(runner: Runner, seen: Observations) -> None:
    # Imported late, since matplotlib is slow to import.
    from mldr_kd_mm.visualization.figures import to_pixels
    from mldr_kd_mm.visualization.model_figures import class_names, pictures_of

    by_epoch = isinstance(runner.train_loop, EpochBasedTrainLoop)
    # The same step as mmengine's LoggerHook.
    step = runner.epoch if by_epoch else runner.iter
    classes = class_names(runner.val_dataloader.dataset, seen.student.shape[1])
    runner.visualizer.add_scalars(_scalars(seen), step=step)
    for picture in pictures_of(seen, classes):
        _add_image(runner, picture.name, to_pixels(picture.figure), step)


def _scalars(seen: Observations) -> dict[str, float]:
    scalars = dict(
        agreement=agreement(seen.student, seen.teacher),
        student_ece=expected_calibration_error(softmax(seen.student), seen.labels),
        teacher_ece=expected_calibration_error(softmax(seen.teacher), seen.labels),
    )
    if seen.fusion_weights is not None:
        for stage, weights in enumerate(seen.fusion_weights, start=1):
            scalars[f'fusion_stage{stage}_lowest'] = float(weights.min())
            scalars[f'fusion_stage{stage}_highest'] = float(weights.max())
    return {f'observed/{name}': value for name, value in scalars.items()}


def _add_image(runner: Runner, name: str, image: np.ndarray, step: int) -> None:
    for backend in runner.visualizer._vis_backends.values():
        # MLflow expects a file name and has no steps.
        as_file = isinstance(backend, MLflowVisBackend)
        backend.add_image(f'{name}_{step}.png' if as_file else name, image, step)

"""Accuracy of the teacher before training."""

from __future__ import annotations

import copy
from collections import defaultdict
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

import torch
from mmengine.hooks import Hook
from mmengine.runner import Runner

from mldr_kd_mm.engine.hooks.progress import ProgressHook
from mldr_kd_mm.engine.knn_loop import KNNLoop
from mldr_kd_mm.models.distillers.distiller import Distiller
from mldr_kd_mm.models.distillers.teacher import Predictions
from mldr_kd_mm.registry import HOOKS
from mldr_kd_mm.utils.dist import unwrap_model
from mldr_kd_mm.utils.errors import is_number
from mldr_kd_mm.utils.progress import track

Predict = Callable[[Any], Iterator[Predictions]]


@HOOKS.register_module()
class TeacherAccuracyHook(Hook):
    """Evaluates the teacher on the validation set before training and logs its metrics.

    This reveals wrong weights, classes or normalisation of the teacher at once. The metrics are
    also stored in the message hub as ``teacher_metrics``, and thus in each checkpoint. The hook
    does nothing in a resumed run, without a validation set, or if the model is not a
    :class:`Distiller`. A teacher without a head is evaluated by a
    :class:`~mldr_kd_mm.engine.knn_loop.KNNLoop` alone, and then as the student is; one with another
    number of classes is not evaluated. Of several teachers, each is evaluated, and all together:
    their metrics are ``teacher1/<metric>``, ``teacher2/<metric>``, ... and ``teacher/<metric>``.

    Args:
        enabled: Whether to evaluate the teacher. The default runtime has this hook; turn it off
            with ``--cfg-options default_hooks.teacher_accuracy.enabled=False``.
    """

    priority = 'VERY_LOW'

    def __init__(self, enabled: bool = True) -> None:
        self.enabled = enabled

    def before_train(self, runner: Runner) -> None:
        """Log the teacher's metrics as ``teacher/<metric>``."""
        model = unwrap_model(runner.model)
        has_teacher = isinstance(model, Distiller)
        if not (self.enabled and has_teacher and runner.val_loop) or runner.iter > 0:
            return
        reasons = {} if isinstance(runner.val_loop, KNNLoop) else _reasons(model)
        for label, reason in reasons.items():
            who = 'The teacher' if label == 'teacher' else label.capitalize()
            runner.logger.info(f'{who} {reason}; its accuracy is not measured')
        if len(reasons) == len(model.teachers):
            return
        # The loader draws a seed from the global generator, which must not affect training.
        with torch.random.fork_rng(devices=[]):
            metrics = self._evaluate(runner, model)
        stored = {}
        for label, values in metrics.items():
            runner.visualizer.add_scalars({f'{label}/{name}': v for name, v in values.items()})
            stored |= {n if label == 'teacher' else f'{label}/{n}': v for n, v in values.items()}
            numbers = {name: value for name, value in values.items() if is_number(value)}
            text = ', '.join(f'{name} {value:.2f}' for name, value in numbers.items())
            is_mean = label == 'teacher' and len(metrics) > 1
            who = f'Mean of {len(metrics) - 1} teachers' if is_mean else label.capitalize()
            runner.logger.info(f'{who} on the validation set: {text}')
        runner.message_hub.update_info('teacher_metrics', stored)

    @torch.no_grad()
    def _evaluate(self, runner: Runner, model: Distiller) -> dict[str, dict[str, float]]:
        """Return the metrics of each teacher, and as ``teacher`` those of all together."""
        loop = runner.val_loop
        predict = (_by_neighbours if isinstance(loop, KNNLoop) else _by_heads)(runner, model)
        evaluators = defaultdict(partial(copy.deepcopy, loop.evaluator))
        shows = any(isinstance(hook, ProgressHook) and hook.enabled for hook in runner.hooks)
        for data in track(loop.dataloader, 'teacher') if shows else loop.dataloader:
            for label, samples in predict(data):
                evaluators[label].process(data_samples=samples, data_batch=data)
        size = len(loop.dataloader.dataset)
        return {label: evaluator.evaluate(size) for label, evaluator in evaluators.items()}


def _by_heads(runner: Runner, model: Distiller) -> Predict:
    def predict(data: Any) -> Iterator[Predictions]:
        batch = model.data_preprocessor(data, False)
        return model.teacher.predictions(batch['inputs'], batch['data_samples'], model.num_classes)

    return predict


def _by_neighbours(runner: Runner, model: Distiller) -> Predict:
    classifiers = {
        label: runner.val_loop.fit(model.data_preprocessor, teacher.embed)
        for label, teacher, _ in model.teachers
    }
    return lambda data: ((label, predict(data)) for label, predict in classifiers.items())


def _reasons(model: Distiller) -> dict[str, str]:
    """Return the teachers whose predictions cannot be compared with the labels, and why."""
    reasons = {}
    for label, teacher, _ in model.teachers:
        if not teacher.has_head:
            reasons[label] = 'has no head'
        elif teacher.num_classes != model.num_classes:
            reasons[label] = f'has {teacher.num_classes} classes, the student {model.num_classes}'
    return reasons

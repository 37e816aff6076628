"""Accuracy of the teacher before training."""

from __future__ import annotations

from functools import partial
from typing import Any

import torch
from mmengine.hooks import Hook
from mmengine.runner import Runner
from mmpretrain.structures import DataSample

from mldr_kd_mm.engine.hooks.progress import ProgressHook
from mldr_kd_mm.engine.knn_loop import KNNLoop
from mldr_kd_mm.models.distillers.distiller import Distiller
from mldr_kd_mm.registry import HOOKS
from mldr_kd_mm.utils.dist import unwrap_model
from mldr_kd_mm.utils.errors import is_number
from mldr_kd_mm.utils.progress import track


@HOOKS.register_module()
class TeacherAccuracyHook(Hook):
    """Evaluates the teacher on the validation set before training and logs its metrics.

    This reveals wrong weights, classes or normalisation of the teacher at once. The metrics are
    also stored in the message hub as ``teacher_metrics``, and thus in each checkpoint. The hook
    does nothing in a resumed run, without a validation set, or if the model is not a
    :class:`Distiller`. A teacher without a head is evaluated by a
    :class:`~mldr_kd_mm.engine.knn_loop.KNNLoop` alone, and then as the student is.

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
        if not (model.teacher.has_head or isinstance(runner.val_loop, KNNLoop)):
            runner.logger.info('The teacher has no head; its accuracy is not measured')
            return
        # The loader draws a seed from the global generator, which must not affect training.
        with torch.random.fork_rng(devices=[]):
            metrics = self._evaluate(runner, model)
        runner.visualizer.add_scalars({f'teacher/{name}': v for name, v in metrics.items()})
        runner.message_hub.update_info('teacher_metrics', metrics)
        numbers = {name: value for name, value in metrics.items() if is_number(value)}
        text = ', '.join(f'{name} {value:.2f}' for name, value in numbers.items())
        runner.logger.info(f'Teacher on the validation set: {text}')

    @torch.no_grad()
    def _evaluate(self, runner: Runner, model: Distiller) -> dict[str, float]:
        loop = runner.val_loop
        if isinstance(loop, KNNLoop):
            predict = loop.fit(model.data_preprocessor, model.embed_teacher)
        else:
            predict = partial(_predict, model)
        shows = any(isinstance(hook, ProgressHook) and hook.enabled for hook in runner.hooks)
        for data in track(loop.dataloader, 'teacher') if shows else loop.dataloader:
            loop.evaluator.process(data_samples=predict(data), data_batch=data)
        return loop.evaluator.evaluate(len(loop.dataloader.dataset))


def _predict(model: Distiller, data: Any) -> list[DataSample]:
    batch = model.data_preprocessor(data, False)
    return model.predict_teacher(batch['inputs'], batch['data_samples'])

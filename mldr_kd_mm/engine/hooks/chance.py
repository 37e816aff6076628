"""Warnings about accuracies at chance level and about teachers below their students."""

from __future__ import annotations

from typing import Any

import numpy as np
from mmengine.dist import master_only
from mmengine.hooks import Hook
from mmengine.runner import Runner

from mldr_kd_mm.evaluation.logged_run import ACCURACY, owner_of
from mldr_kd_mm.registry import HOOKS
from mldr_kd_mm.utils.logging import percent


@HOOKS.register_module()
class ChanceHook(Hook):
    """Warns if a model is no better than a constant prediction, or a teacher below its student.

    The top-1 accuracy is compared with that of always predicting the most frequent class of the
    validation set, 100 % / C for C classes of equal size. The accuracy of the teacher is that of
    :class:`~mldr_kd_mm.engine.hooks.TeacherAccuracyHook`.
    """

    # Runs after TeacherAccuracyHook and before StopSignalHook, which exits.
    priority = 92

    @master_only
    def before_train(self, runner: Runner) -> None:
        """Judge each teacher, and several together."""
        metrics = runner.message_hub.runtime_info.get('teacher_metrics', {})
        for name, value in metrics.items() if runner.iter == 0 else ():
            owner, metric = owner_of(name)
            if metric == ACCURACY:
                _judge(
                    runner,
                    f"{'the teacher' if owner == 'teacher' else owner}'s accuracy",
                    value,
                    'check its weights, the order of its classes and its normalisation',
                )

    @master_only
    def after_train(self, runner: Runner) -> None:
        """Judge the model after the last validation."""
        history = runner.message_hub.log_scalars.get(f'val/{ACCURACY}')
        if history is None:
            return
        accuracy = history.current()
        _judge(
            runner,
            'the accuracy',
            accuracy,
            'train for more epochs, or check the labels and the learning rate',
        )
        teacher = runner.message_hub.runtime_info.get('teacher_metrics', {}).get(ACCURACY)
        if teacher is not None and teacher < accuracy:
            runner.logger.warning(
                f"the teacher's accuracy, {percent(teacher)}, is below the student's, "
                f'{percent(accuracy)}; train the teacher for more epochs, or choose a stronger one'
            )


def _judge(runner: Runner, what: str, accuracy: float, advice: str) -> None:
    chance = _chance(runner.val_dataloader.dataset) if runner.val_loop else None
    if chance is not None and accuracy <= chance + 1e-3:  # metrics are rounded to float32
        runner.logger.warning(
            f'{what}, {percent(accuracy)}, is no better than that of always predicting the most '
            f'frequent class, {percent(chance)}; {advice}'
        )


def _chance(dataset: Any) -> float | None:
    """Return the share of the most frequent class in percent; None without one label an image."""
    try:
        labels = np.asarray(dataset.get_gt_labels())
    except (AttributeError, KeyError, TypeError, ValueError):
        return None
    if labels.ndim != 1 or not len(labels):
        return None
    return 100 * float(np.unique(labels, return_counts=True)[1].max()) / len(labels)

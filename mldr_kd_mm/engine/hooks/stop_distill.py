"""Hook that ends distillation before training ends."""

from __future__ import annotations

from mmengine.hooks import Hook
from mmengine.runner import EpochBasedTrainLoop, Runner

from mldr_kd_mm.datasets import UnlabeledFolder
from mldr_kd_mm.datasets.samples import iter_parts
from mldr_kd_mm.models.distillers.distiller import Distiller
from mldr_kd_mm.registry import HOOKS
from mldr_kd_mm.utils.dist import unwrap_model
from mldr_kd_mm.utils.errors import ConfigError, check_positive

_LOSSES = ('train/loss', 'train/fusion_')


@HOOKS.register_module()
class StopDistillHook(Hook):
    """Trains the student of a :class:`Distiller` alone after a number of epochs.

    From then on the teacher does not run, and the neck and the losses get gradients of 0. A resumed
    run does the same. The hook does nothing if the model is not a Distiller.

    Args:
        stop_epoch: Number of epochs with distillation.

    Raises:
        ConfigError: ``stop_epoch`` is not a positive integer.
    """

    def __init__(self, stop_epoch: int) -> None:
        check_positive(stop_epoch=stop_epoch)
        self.stop_epoch = stop_epoch

    def before_train(self, runner: Runner) -> None:
        """Check that the run can stop distillation.

        Raises:
            ConfigError: The run counts iterations, or the student has no loss of its own or no
                labels for it.
        """
        model = unwrap_model(runner.model)
        if not isinstance(model, Distiller):
            return
        if not isinstance(runner.train_loop, EpochBasedTrainLoop):
            raise ConfigError('StopDistillHook: train_cfg.by_epoch must be True')
        if not model.tapped_student.has_head:
            raise ConfigError('StopDistillHook: the student must have a head, to be trained alone')
        parts = iter_parts(runner.train_dataloader.dataset)
        if all(isinstance(part, UnlabeledFolder) for part in parts):
            raise ConfigError('StopDistillHook: the student must have labels, to be trained alone')
        model.distillation_stopped = False

    def before_train_epoch(self, runner: Runner) -> None:
        """Stop distillation at the first epoch without it."""
        model = unwrap_model(runner.model)
        if not isinstance(model, Distiller) or model.distillation_stopped:
            return
        if runner.epoch >= self.stop_epoch:
            model.distillation_stopped = True
            # The log would go on to repeat the last values of losses that are no longer computed.
            scalars = runner.message_hub.log_scalars
            for name in [name for name in scalars if name.startswith(_LOSSES)]:
                del scalars[name]
            runner.logger.info(f'The student trains alone from epoch {runner.epoch + 1} on')

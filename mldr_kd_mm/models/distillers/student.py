"""The student in training: its own loss, and the tensors that it computes on the way."""

from __future__ import annotations

import logging
from collections.abc import Collection, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
from mmengine.logging import print_log
from mmpretrain.models import ImageClassifier
from mmpretrain.structures import DataSample
from torch import Tensor, nn

from mldr_kd_mm.models.taps.recorder import FeatureRecorder
from mldr_kd_mm.models.taps.stages import (
    DISTILLATION_LOGITS,
    distillation_tap,
    evaluation_mode,
    logits_tap,
)
from mldr_kd_mm.models.taps.tapped_model import TappedModel
from mldr_kd_mm.structures.label import split_by_label
from mldr_kd_mm.utils.device import to_device
from mldr_kd_mm.utils.errors import ConfigError, describe


class Student(TappedModel):
    """A classifier in training, and the recorder of its taps.

    ``logits`` are what the student predicts. Some students compute something else in training, such
    as ArcFace's logits with a margin; call :meth:`find_logits` before you record their logits. A
    student without a head has features, but neither logits nor a loss of its own.

    A student with a distillation token has a second head, whose output is ``distillation_logits``.
    It predicts the mean of both heads, in training too unless :meth:`separate_heads` is called.

    Args:
        model: The classifier.
        recorder: The recorder, which names the taps.
    """

    def __init__(self, model: nn.Module, recorder: FeatureRecorder) -> None:
        super().__init__(model, recorder)
        kinds = {kind.__name__ for kind in type(getattr(model, 'head', None)).__mro__}
        # The original mmpretrain has no RegressionHead to import.
        self.predicts_one_class = not kinds & {'MultiLabelClsHead', 'RegressionHead'}
        self._repeats_head = False
        self.distillation_tap = distillation_tap(model)
        if self.distillation_tap is not None:
            recorder.found[DISTILLATION_LOGITS] = self.distillation_tap
            model.model.register_forward_hook(_class_logits)

    def separate_heads(self, enable: bool) -> None:
        """Choose what the logits of a student with two heads are in training.

        Args:
            enable: Whether they are those of the class head alone, or the mean of both heads.
        """
        if self.distillation_tap is not None:
            self.model.model.set_distilled_training(enable)

    def loss(
        self, inputs: Tensor, data_samples: list[DataSample], names: Collection[str]
    ) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
        """Compute the student's own loss, and record tensors.

        Args:
            inputs: Images (B, 3, H, W).
            data_samples: Labels of the batch.
            names: Tensors to record, of all images.

        Returns:
            The losses, see :meth:`own_loss`, and the recorded tensors.
        """
        with self.record(names) as record:
            losses = self.own_loss(inputs, data_samples)
        return losses, record

    def own_loss(self, inputs: Tensor, data_samples: list[DataSample]) -> dict[str, Tensor]:
        """Compute the student's own loss of the labelled images; the network sees all.

        Args:
            inputs: Images (B, 3, H, W).
            data_samples: Labels of the batch.

        Returns:
            The losses, none without a head. The loss is exactly 0 if no image has a label.

        Raises:
            ConfigError: If some images have no label and the classifier has no ``loss_module``.
        """
        if not self.has_head:
            self.model(inputs, mode='tensor')
            return {}
        labelled, unlabelled = split_by_label(data_samples)
        if not labelled:
            # All weights on the way to the logits get gradients of 0, as DDP requires.
            return dict(loss=self.model(inputs, mode='tensor').flatten()[:0].sum())
        if unlabelled:
            return self._loss_of_part(inputs, data_samples, labelled)
        return self._loss_of_all(inputs, data_samples)

    def compile(self, **options: Any) -> None:
        """Run the network, with its taps, through ``torch.compile`` from now on.

        The names of its modules and parameters do not change.

        Args:
            **options: Arguments of ``torch.compile``.
        """
        for module in self.model.modules():
            # mmpretrain's rates are numbers of numpy, at which the graph would break.
            if isinstance(getattr(module, 'drop_prob', None), np.floating):
                module.drop_prob = float(module.drop_prob)
        # The loss of an ImageClassifier calls its backbone, and that of a TimmClassifier its model.
        parts = (getattr(self.model, name, None) for name in ('backbone', 'model'))
        next(filter(None, parts), self.model).compile(**options)

    @torch.no_grad()
    def find_logits(self, input_size: Sequence[int]) -> None:
        """Find where the student's loss computes what the student predicts.

        The student predicts two random images and computes their loss, in evaluation mode. If the
        loss cannot be computed, a warning says that the logits are not checked. The student's
        config may name the tap itself: ``taps=dict(logits=...)``.

        Args:
            input_size: (3, H, W) of the images.

        Raises:
            ConfigError: If the loss does not compute what the student predicts.
        """
        if not self.has_head or 'logits' in self.recorder.taps:
            return
        # The seed leaves the weights that are drawn afterwards unchanged.
        images = torch.rand(2, *input_size, generator=torch.Generator().manual_seed(0))
        images = images.to(next(self.model.parameters()))
        failure = ''
        with evaluation_mode(self.model):
            prediction = self.model(images, mode='tensor')
            if not isinstance(prediction, Tensor):
                return  # The recorder reports it.
            with _modules_that_give(prediction, self.model) as paths:
                try:
                    self.model.loss(images, _samples(self.model, prediction))
                except Exception as error:  # It may need more than labels.
                    failure = describe(error)
        if logits_tap(self.model) in paths:
            return
        if failure:
            print_log(
                f'student: its loss of random images cannot be computed ({failure}), so it is not '
                'checked that the loss uses the logits that the student predicts; if it uses '
                'others, name the tap of the predicted ones in taps=dict(logits=...)',
                'current',
                logging.WARNING,
            )
        elif paths:
            self.recorder.found['logits'] = paths[-1]
        elif type(self.model).loss is ImageClassifier.loss:
            self._repeats_head = True
        else:
            raise ConfigError(
                f'student: no module in the loss of {type(self.model).__name__} gives the logits '
                'that it predicts; compute them in a module of their own'
            )

    def _loss_of_part(
        self, inputs: Tensor, data_samples: list[DataSample], rows: list[int]
    ) -> dict[str, Tensor]:
        """Compute the loss of the samples at these rows."""
        module = getattr(getattr(self.model, 'head', self.model), 'loss_module', None)
        if not isinstance(module, nn.Module):
            raise ConfigError(
                f'student: {type(self.model).__name__} has no loss_module, so its loss cannot '
                'leave out images without labels; use another student, or labelled images alone'
            )
        # A label is needed in each place; those of the unlabelled samples are dropped again.
        samples = [data_samples[rows[0]]] * len(data_samples)
        for row in rows:
            samples[row] = data_samples[row]
        index = to_device(torch.tensor(rows), inputs.device)
        with _only_rows(module, index, len(samples)):
            losses = self._loss_of_all(inputs, samples)
        # The head's accuracy of the batch would count the others.
        return {name: value for name, value in losses.items() if 'loss' in name}

    def _loss_of_all(self, inputs: Tensor, data_samples: list[DataSample]) -> dict[str, Tensor]:
        model = self.model
        if not self._repeats_head:
            return model.loss(inputs, data_samples)
        features = model.extract_feat(inputs)
        losses = model.head.loss(features, data_samples)
        model.head(features)  # The last call is recorded.
        return losses


def _class_logits(module: nn.Module, args: tuple, output: Any) -> Tensor:
    """Replace the output of two heads, a pair in training, by that of the class head."""
    return output[0] if isinstance(output, tuple) else output


@contextmanager
def _only_rows(loss_module: nn.Module, index: Tensor, batch_size: int) -> Iterator[None]:
    """Let a loss see only some rows of the predictions and labels of a batch.

    Args:
        loss_module: The loss. The number of images by which it divides becomes that of the rows.
        index: The rows.
        batch_size: Number of images in the batch.
    """

    def select(value: Any) -> Any:
        if isinstance(value, Tensor) and value.dim() and len(value) == batch_size:
            return value[index]
        if isinstance(value, (list, tuple)):
            return type(value)(map(select, value))
        return value

    def replace(_: nn.Module, args: tuple, kwargs: dict[str, Any]) -> tuple[tuple, dict]:
        kwargs = {name: select(value) for name, value in kwargs.items()}
        if kwargs.get('avg_factor') is not None:
            kwargs['avg_factor'] = kwargs['avg_factor'] * len(index) / batch_size
        return tuple(map(select, args)), kwargs

    handle = loss_module.register_forward_pre_hook(replace, with_kwargs=True)
    try:
        yield
    finally:
        handle.remove()


@contextmanager
def _modules_that_give(wanted: Tensor, model: nn.Module) -> Iterator[list[str]]:
    """Collect the paths of the modules that give a tensor, from the first to the last."""
    paths: list[str] = []

    def compare(path: str, output: object) -> None:
        if isinstance(output, Tensor) and output.shape == wanted.shape:
            if torch.allclose(output, wanted, rtol=1e-3, atol=1e-5, equal_nan=True):
                paths.append(path)

    handles = [
        module.register_forward_hook(lambda _, args, output, path=path: compare(path, output))
        for path, module in model.named_modules()
    ]
    try:
        yield paths
    finally:
        for handle in handles:
            handle.remove()


def _samples(model: nn.Module, prediction: Tensor) -> list[DataSample]:
    """Return labels in the form that batches have, which mixup and CutMix make soft."""
    samples = [DataSample().set_gt_label(min(i, prediction.shape[1] - 1)) for i in range(2)]
    if getattr(model.data_preprocessor, 'batch_augments', None) is not None:
        for sample in samples:
            sample.set_gt_score(torch.eye(prediction.shape[1])[sample.gt_label[0]])
    return [sample.to(prediction.device) for sample in samples]

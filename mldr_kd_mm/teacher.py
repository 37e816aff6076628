"""The frozen teacher: built, loaded, verified, and kept outside the student's module tree."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from typing import NamedTuple

import torch
import torch.nn.functional as F
from mmengine.logging import print_log
from torch import Tensor, nn

from mldr_kd_mm import stages
from mldr_kd_mm.checkpoint import load_state_dict
from mldr_kd_mm.classifiers import build_classifier
from mldr_kd_mm.errors import ConfigError
from mldr_kd_mm.recorder import FeatureRecorder


class LoadReport(NamedTuple):
    """Which of a model's weights a checkpoint filled."""

    matched: int
    missing: list[str]
    unexpected: list[str]

    def __str__(self) -> str:
        return (
            f'{self.matched} weights matched, {len(self.missing)} missing, '
            f'{len(self.unexpected)} unexpected'
        )


class Teacher:
    """A frozen classifier.

    It is no ``nn.Module``, so that a Distiller that holds one has no teacher in its state dict,
    parameters, EMA copies, DDP buckets or optimizer. Copies of the Distiller share it. It is always
    in evaluation mode and never records gradients.

    Args:
        classifier: Config of an mmpretrain classifier.
        checkpoint: Path or URL of its weights. None: the weights its own config gives it.
        recorder: Names the taps that can be asked for beside ``logits`` and ``feature``.
        size: (H, W) of its images. None: what its config declares, else that of the batch.

    Raises:
        FileNotFoundError: If the checkpoint does not exist.
        ConfigError: If the checkpoint does not fill all weights.
    """

    def __init__(
        self,
        classifier: dict,
        checkpoint: str | None,
        recorder: FeatureRecorder,
        size: Sequence[int] | None = None,
    ) -> None:
        self.model: nn.Module = build_classifier(classifier)
        self.recorder = recorder
        self.size = tuple(size) if size else stages.input_size(self.model)
        self.checkpoint = checkpoint
        if checkpoint is not None:
            try:
                report = load_weights(self.model, checkpoint, 'teacher_checkpoint')
            except FileNotFoundError as error:
                advice = 'train it with a config of configs/teachers, or name another path or URL'
                raise FileNotFoundError(f'{error}: {advice}') from None
            print_log(f'teacher_checkpoint={checkpoint!r}: {report}', 'current')
        self.model.requires_grad_(False).eval()

    @torch.no_grad()
    def __call__(self, images: Tensor, names: Collection[str] = ('logits',)) -> dict[str, Tensor]:
        """Run the teacher.

        Args:
            images: (B, 3, H, W), normalised as its own config has it.
            names: What to return.

        Returns:
            Name -> tensor, ``logits`` always among them.

        Raises:
            ConfigError: If a logit is not finite.
        """
        # The model's output are its logits, unless the config taps others.
        taps = [name for name in names if name != 'logits' or name in self.recorder.taps]
        with self.recorder(self.model, taps) as record:
            logits = self.model(self.resize(images), mode='tensor')
        finite = logits.isfinite()
        if not finite.all():
            raise ConfigError(
                f'teacher logits: {int((~finite).any(-1).sum())} of {len(logits)} samples are not '
                'finite: check the weights of the teacher and, under --amp, its range'
            )
        return {'logits': logits, **record}

    @torch.no_grad()
    def predict(self, images: Tensor, data_samples: list) -> list:
        """Predict as mmpretrain's classifiers do; the samples get ``pred_label`` and the like."""
        return self.model(self.resize(images), data_samples, mode='predict')

    def init_weights(self) -> None:
        """Let the teacher's own config initialise it, unless a checkpoint already did."""
        if self.checkpoint is None:
            print_log('teacher_checkpoint=None: its own config initialises the teacher', 'current')
            self.model.init_weights()

    def resize(self, images: Tensor) -> Tensor:
        """Bring the images to the size that the teacher wants."""
        if self.size is None or self.size == tuple(images.shape[-2:]):
            return images
        return F.interpolate(images, self.size, mode='bilinear', antialias=True)

    def __deepcopy__(self, memo: dict) -> Teacher:
        return self


def load_weights(model: nn.Module, path: str, field: str) -> LoadReport:
    """Fill all weights of a model from a checkpoint.

    Args:
        model: The model to fill.
        path: Path or URL of the checkpoint.
        field: Name of the config's field that holds the path, for the errors.

    Returns:
        What was filled; nothing is missing.

    Raises:
        FileNotFoundError: If there is no such file.
        ConfigError: If a weight of the model is missing or has another shape.
    """
    state_dict = load_state_dict(path, field)
    try:
        missing, unexpected = model.load_state_dict(state_dict, strict=False)
    except RuntimeError as error:
        mismatches = [line.strip() for line in str(error).splitlines()[1:]]
        raise ConfigError(f'{field}={path!r}: {_first(mismatches)}') from None
    report = LoadReport(len(state_dict) - len(unexpected), missing, unexpected)
    if missing:
        raise ConfigError(
            f'{field}={path!r}: {report}: all weights must be there; missing {_first(missing)}; '
            f'unexpected {_first(unexpected) or "none"}'
        )
    return report


def _first(items: Sequence[str], count: int = 4) -> str:
    rest = f' and {len(items) - count} more' if len(items) > count else ''
    return ', '.join(items[:count]) + rest

"""The frozen teacher: built, loaded, verified, and kept outside the student's module tree."""

from __future__ import annotations

from collections.abc import Collection, Sequence

import torch
import torch.nn.functional as F
from mmengine.logging import print_log
from torch import Tensor, nn

from mldr_kd_mm import stages
from mldr_kd_mm.classifiers import build_classifier
from mldr_kd_mm.errors import ConfigError
from mldr_kd_mm.recorder import FeatureRecorder
from mldr_kd_mm.weights import load_weights


class Teacher:
    """A frozen classifier.

    It is no ``nn.Module``, so that a Distiller that holds one has no teacher in its state dict,
    parameters, EMA copies, DDP buckets or optimizer. Copies of the Distiller share it. It is always
    in evaluation mode and never records gradients.

    Args:
        classifier: Config of an mmpretrain classifier.
        checkpoint: Path, URL or ``hf-hub:`` name of its weights, in any format that
            :mod:`mldr_kd_mm.checkpoint` reads. None: the weights its own config gives it.
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
        self.config = classifier
        self.model: nn.Module = build_classifier(classifier)
        self.recorder = recorder
        self.size = tuple(size) if size else stages.fixed_size(self.model)
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

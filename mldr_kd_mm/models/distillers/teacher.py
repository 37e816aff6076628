"""The frozen teacher: built, loaded, verified, and kept outside the student's module tree."""

from __future__ import annotations

import logging
from collections.abc import Collection, Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
import torch.nn.functional as F
from mmengine.logging import print_log
from torch import Tensor, nn

from mldr_kd_mm.models.builder import build_classifier, load_weights
from mldr_kd_mm.models.taps import stages
from mldr_kd_mm.models.taps.recorder import FeatureRecorder
from mldr_kd_mm.utils.errors import ConfigError

PRECISIONS = dict(fp32=torch.float32, bf16=torch.bfloat16, fp16=torch.float16)


class Teacher:
    """A frozen classifier.

    It is no ``nn.Module``, so that a Distiller that holds one has no teacher in its state dict,
    parameters, EMA copies, DDP buckets or optimizer. Copies of the Distiller share it. It is always
    in evaluation mode and never records gradients.

    Args:
        classifier: Config of an mmpretrain classifier.
        checkpoint: Path, URL or ``hf-hub:`` name of its weights, in any format that
            :mod:`mldr_kd_mm.utils.checkpoint` reads. None: the weights its own config gives it.
        recorder: Names the taps that can be asked for beside ``logits`` and ``feature``.
        size: (H, W) of its images. None: what its config declares, else that of the batch.
        precision: ``fp32``, or ``bf16`` or ``fp16`` under autocast. None: that of the student, half
            precision under ``--amp``.

    Raises:
        FileNotFoundError: If the checkpoint does not exist.
        ConfigError: If the checkpoint does not fill all weights, or the precision is none.
    """

    def __init__(
        self,
        classifier: dict,
        checkpoint: str | None,
        recorder: FeatureRecorder,
        size: Sequence[int] | None = None,
        precision: str | None = None,
    ) -> None:
        if precision not in (None, *PRECISIONS):
            raise ConfigError(
                f'teacher_precision={precision!r}: must be one of {", ".join(PRECISIONS)}, or None '
                "for the student's"
            )
        self.config = classifier
        self.precision = precision
        self._unchecked: tuple[Tensor, torch.cuda.Event] | None = None
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
        # Convolutions that overlap are faster in this layout, on tensor cores much faster.
        self.memory_format = torch.contiguous_format
        if any(_overlaps(module) for module in self.model.modules()):
            self.memory_format = torch.channels_last
            self.model.to(memory_format=self.memory_format)
        _warn_of_slow_precision(precision)

    # Not inference_mode(): a backward pass cannot keep its tensors, torch.compile stumbles over
    # them, and it saved no time that could be measured.
    @torch.no_grad()
    def __call__(self, images: Tensor, names: Collection[str] = ('logits',)) -> dict[str, Tensor]:
        """Run the teacher.

        Args:
            images: (B, 3, H, W), normalised as its own config has it.
            names: What to return.

        Returns:
            Name -> tensor, ``logits`` always among them.

        Raises:
            ConfigError: If a logit of a finite image is not finite; on a GPU the next call raises
                it.
        """
        taps = self._taps(names)
        with self._autocast(images.device.type), self.recorder(self.model, taps) as record:
            logits = self._follow(images)(self._prepare(images), mode='tensor')
        record = {'logits': logits, **record}
        if self.precision is not None:
            record = {name: tensor.float() for name, tensor in record.items()}
        self._check_finite(record['logits'], images)
        return record

    @torch.no_grad()
    def predict(self, images: Tensor, data_samples: list) -> list:
        """Predict as mmpretrain's classifiers do; the samples get ``pred_label`` and the like."""
        with self._autocast(images.device.type):
            return self._follow(images)(self._prepare(images), data_samples, mode='predict')

    def init_weights(self) -> None:
        """Let the teacher's own config initialise it, unless a checkpoint already did."""
        if self.checkpoint is None:
            print_log('teacher_checkpoint=None: its own config initialises the teacher', 'current')
            self.model.init_weights()

    def _follow(self, images: Tensor) -> nn.Module:
        """The model, on the images' device: FSDP moves a module's own parameters alone."""
        if next(self.model.parameters()).device != images.device:
            self.model.to(images.device)
        return self.model

    def resize(self, images: Tensor) -> Tensor:
        """Bring the images to the size that the teacher wants."""
        if self.size is None or self.size == tuple(images.shape[-2:]):
            return images
        return F.interpolate(images, self.size, mode='bilinear', antialias=True)

    def compile(self, names: Collection[str], **options: Any) -> None:
        """Let ``torch.compile`` compile it.

        Args:
            names: What will be asked for.
            **options: Arguments of ``torch.compile``.

        Raises:
            ConfigError: If that takes taps: a compiled model does not run hooks that come later.
        """
        if self._taps(names):
            raise ConfigError(
                f'teacher_compile: the losses read {", ".join(self._taps(names))} of the teacher: '
                'must be False, a compiled teacher gives its logits alone'
            )
        self.model.compile(**options)

    def _taps(self, names: Collection[str]) -> list[str]:
        """What must be tapped: the model's output are its logits, unless the config taps others."""
        return [name for name in names if name != 'logits' or name in self.recorder.taps]

    def _check_finite(self, logits: Tensor, images: Tensor) -> None:
        """Refuse what is not; on a GPU that of the last call, for which nothing must wait."""
        # A broken image is not the teacher's fault: its step is skipped by a NonFiniteHook.
        sound = images.flatten(1).sum(1, dtype=torch.float32).isfinite()
        wrong = ((~logits.isfinite()).any(-1) & sound).sum()
        if logits.is_cuda:
            arrived = torch.cuda.Event()
            current = wrong.to('cpu', non_blocking=True), arrived
            arrived.record()
            last, self._unchecked = self._unchecked, current
            if last is None:
                return
            wrong, arrived = last
            arrived.synchronize()
        if wrong:
            raise ConfigError(
                f'teacher logits: {int(wrong)} of {len(logits)} samples are not finite: check the '
                'weights of the teacher and, in half precision, its range'
            )

    def _prepare(self, images: Tensor) -> Tensor:
        return self.resize(images).contiguous(memory_format=self.memory_format)

    def _autocast(self, device: str) -> AbstractContextManager:
        """The precision that was asked for, whatever the student's is."""
        if self.precision is None:
            return nullcontext()
        dtype = PRECISIONS[self.precision]
        return torch.autocast(device, dtype, enabled=dtype != torch.float32)

    def __deepcopy__(self, memo: dict) -> Teacher:
        return self


def _overlaps(module: nn.Module) -> bool:
    """Whether it is a convolution whose windows overlap, unlike a patch embedding's."""
    return isinstance(module, nn.Conv2d) and max(module.kernel_size) > max(module.stride)


def _warn_of_slow_precision(precision: str | None) -> None:
    if precision in (None, 'fp32') or torch.cuda.is_available():
        return
    if not torch.ops.mkldnn._is_mkldnn_bf16_supported():
        print_log(
            f'teacher_precision={precision!r}: this processor is slower in it than in fp32',
            'current',
            logging.WARNING,
        )

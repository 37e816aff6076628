"""A model together with the recorder of its taps and the layouts of its stages."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Sequence
from contextlib import contextmanager
from typing import NamedTuple

import torch
from torch import Tensor, nn

from mldr_kd_mm.models.taps.layout import Layout, tensors_of
from mldr_kd_mm.models.taps.recorder import FeatureRecorder
from mldr_kd_mm.models.taps.stages import (
    VECTORS,
    evaluation_mode,
    has_head,
    stage_layout,
    stage_names,
    tap_layout,
)


class Probe(NamedTuple):
    """The tensors of a model for one empty image."""

    tensors: dict[str, Tensor]
    """Name -> tensor (1, ...), arranged."""
    layouts: dict[str, Layout]
    """Tap -> layout before it was arranged, of each tap that is a map or tokens."""

    def width(self, name: str) -> int:
        """Return the width C of a map (B, C, H, W), tokens (B, N, C) or a vector (B, C)."""
        tensor = self.tensors[name]
        return tensor.shape[1 if tensor.dim() == 4 else -1]

    def grid(self, name: str) -> tuple[int, int] | None:
        """Return the (H, W) of the grid that tokens stand for; None for a map or a vector."""
        layout = self.layouts.get(name)
        return None if layout is None or layout.is_map else layout.grid


class TappedModel:
    """A classifier, the recorder of its taps and the layouts of its stages.

    Recorded tensors are arranged: a stage is a map (B, C, H, W) or tokens (B, N, C), see
    :meth:`mldr_kd_mm.models.taps.layout.Layout.arrange`, and ``feature`` is a vector (B, D), the
    mean of the positions if the model gives several. A tap of any other name is arranged too if it
    is a map or tokens. Call :meth:`probe` before you record taps: it finds their layouts.

    A model without a head has no ``logits``, see :func:`mldr_kd_mm.models.taps.stages.has_head`.

    This is not an ``nn.Module``. A module that holds one does not register the model as its child.

    Args:
        model: The classifier.
        recorder: The recorder, which names the taps.
    """

    def __init__(self, model: nn.Module, recorder: FeatureRecorder) -> None:
        self.model = model
        self.recorder = recorder
        self.has_head = has_head(model)
        self.layouts: dict[str, Layout] = {}

    @property
    def names(self) -> list[str]:
        """All names that can be recorded."""
        return [name for name in self.recorder.names if name != 'logits' or self.has_head]

    def __call__(self, images: Tensor, names: Collection[str]) -> dict[str, Tensor]:
        """Run the model.

        Args:
            images: (B, 3, H, W).
            names: Tensors to record.

        Returns:
            Name -> arranged tensor (B, ...). ``logits`` is there if the model has a head.
        """
        with self.record(names) as record:
            output = self.model(images, mode='tensor')
        return {**(dict(logits=output) if self.has_head else {}), **record}

    @contextmanager
    def record(self, names: Collection[str]) -> Iterator[dict[str, Tensor]]:
        """Record what the model computes inside the ``with``.

        Args:
            names: Tensors to record.

        Yields:
            A dict, filled while the model runs and arranged when the ``with`` ends.

        Raises:
            ConfigError: If a name is unknown or its tap gives no tensor.
            RuntimeError: If a recorded tensor was changed in place.
        """
        with self.recorder(self.model, names) as record:
            yield record
        self._arrange(record)

    def find_stages(self, input_size: Sequence[int]) -> list[str]:
        """Find the taps of the stages, unless the recorder's config names them.

        Args:
            input_size: (3, H, W) of the images.

        Returns:
            The names of the stages, from the first to the last.

        Raises:
            ConfigError: If no stages are found.
        """
        self.recorder.find_stages(self.model, input_size)
        return stage_names(self.recorder.names)

    @torch.no_grad()
    def probe(
        self, names: Collection[str], input_size: Sequence[int], arranged: Collection[str] = ()
    ) -> Probe:
        """Run the model once on an empty image, in evaluation mode, and keep the layouts found.

        All configured taps are recorded, so that a wrong path is found even if nothing reads it.

        Args:
            names: Tensors to record.
            input_size: (3, H, W) of the image.
            arranged: Names that must be maps or tokens, as stages among ``names`` must be.

        Returns:
            The arranged tensors, ``logits`` among them if the model has a head, and the layouts of
            the taps.

        Raises:
            ConfigError: If the path of a tap is wrong, or a tensor that must be a map or tokens is
                neither.
        """
        must_be_arranged = {*stage_names(names), *arranged}
        names = dict.fromkeys([*names, *self.recorder.configured])
        parameter = next(self.model.parameters())
        image = torch.zeros(1, *input_size, device=parameter.device, dtype=parameter.dtype)
        size = tuple(input_size[1:])
        self.layouts = {}
        with evaluation_mode(self.model):
            record = self(image, names)
        for name, tensor in record.items():
            if name in must_be_arranged:
                stage_layout(self.model, name, tensor, size)
            layout = None if name in VECTORS else tap_layout(self.model, tensor, size)
            if layout is not None:
                self.layouts[name] = layout
        self._arrange(record)
        return Probe(record, self.layouts)

    def _arrange(self, record: dict[str, Tensor]) -> None:
        for name, layout in self.layouts.items():
            if name in record:
                record[name] = layout.arrange(record[name])
        if 'feature' in record:
            record['feature'] = _as_vector(record['feature'])


def output_of(model: nn.Module, images: Tensor) -> Tensor:
    """Return a classifier's logits (B, C), or its feature (B, D) if it has no head.

    Args:
        model: The classifier.
        images: (B, 3, H, W).
    """
    output = model(images, mode='tensor')
    return output if has_head(model) else _as_vector(tensors_of(output)[-1])


def _as_vector(feature: Tensor) -> Tensor:
    """Return a feature (B, D): the mean of a map (B, D, H, W) or of tokens (B, N, D)."""
    # The last linear layer of a few classifiers is a 1x1 convolution.
    if feature.dim() == 4:
        return feature.flatten(2).mean(2)
    return feature.mean(1) if feature.dim() == 3 else feature

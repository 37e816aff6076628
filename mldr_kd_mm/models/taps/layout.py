"""How a recorded feature lies in its tensor, and how to bring it to one of two forms."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor


class TokenInfo(NamedTuple):
    """What a model says of the tokens beside its grid."""

    num_prefix: int | None = None
    """How many there are. None: the model does not say."""
    class_token: int | None = None
    """The index of the class token. None: there is none, or the model does not say."""


class Layout(NamedTuple):
    """How the feature of one stage lies in its tensor."""

    order: str
    """The axes: 'BCHW', 'BHWC' (Swin of timm), 'BNC' (most tokens) or 'BCN'."""
    channels: int
    """Width C."""
    grid: tuple[int, int]
    """Height and width of the map, or of the grid that the tokens stand for."""
    num_prefix: int = 0
    """How many of the N tokens are not of the grid."""
    class_token: int | None = None
    """The index of the class token among all N tokens, if there is one."""

    def __str__(self) -> str:
        """For instance 'BNC 384 @ 14x14 + 1', the last number being that of the other tokens."""
        beside = f' + {self.num_prefix}' if self.num_prefix else ''
        return f'{self.order} {self.channels} @ {self.grid[0]}x{self.grid[1]}{beside}'

    @property
    def is_map(self) -> bool:
        """Whether :meth:`arrange` gives a map; else it gives tokens."""
        return self.order == 'BCHW'

    def arrange(self, feature: Tensor) -> Tensor:
        """Bring a feature to one form.

        Args:
            feature: A tensor of this layout.

        Returns:
            A map (B, C, H, W), or tokens (B, H * W, C) in the order of rows, the class token
            before them if there is one. Other tokens, such as registers, are left out.
        """
        if self.is_map:
            return feature
        tokens = feature.transpose(1, 2) if self.order == 'BCN' else feature
        if self.order == 'BHWC':
            return tokens.flatten(1, 2)
        if self.num_prefix == 0:
            return tokens
        if self.class_token is None:
            return tokens[:, self.num_prefix :]
        if self.class_token == 0:
            patches = tokens[:, self.num_prefix :]
            return tokens if self.num_prefix == 1 else torch.cat([tokens[:, :1], patches], 1)
        # Vision Mamba's stands in the middle of its patches.
        before, token, after = tokens.tensor_split([self.class_token, self.class_token + 1], 1)
        return torch.cat([token, before, after], 1)


def tensors_of(output: Any) -> list[Tensor]:
    """The tensors that a module gives: one, alone or with its size as Swin has it, or several."""
    items = output if isinstance(output, (tuple, list)) else [output]
    return [item for item in items if isinstance(item, Tensor)]


def find_layout(
    shape: Sequence[int], image_size: tuple[int, int], info: TokenInfo | None = None
) -> Layout | None:
    """Tell how a feature lies in its tensor from its shape.

    Of several readings that fit, channels before the grid is taken for a map, and tokens before
    channels for a sequence.

    Args:
        shape: Of the feature, the batch first.
        image_size: (H, W) of the image that it was computed of; its grid has these proportions.
        info: What the model says of its tokens.

    Returns:
        The layout, or None where no reading fits.
    """
    info = info or TokenInfo()
    if len(shape) == 4:
        _, *axes = shape
        if _is_grid(*axes[1:], image_size):
            return Layout('BCHW', axes[0], (axes[1], axes[2]))
        if _is_grid(*axes[:2], image_size):
            return Layout('BHWC', axes[2], (axes[0], axes[1]))
    if len(shape) == 3:
        for order, tokens, channels in (('BNC', *shape[1:]), ('BCN', *shape[:0:-1])):
            found = _find_grid(tokens, image_size, info)
            if found is not None:
                grid, num_prefix = found
                class_token = _class_token(num_prefix, info)
                return Layout(order, channels, grid, num_prefix, class_token)
    return None


def _find_grid(
    tokens: int, image_size: tuple[int, int], info: TokenInfo
) -> tuple[tuple[int, int], int] | None:
    """The grid of a number of tokens, and how many of them are beside it."""
    # A model may add its class token only after the stage, as CaiT and XCiT do.
    counts = (0, 1, 2) if info.num_prefix is None else (info.num_prefix, 0)
    for num_prefix in counts:
        patches = max(tokens - num_prefix, 0)
        height = round((patches * image_size[0] / image_size[1]) ** 0.5)
        if (
            patches > 1
            and patches % height == 0
            and _is_grid(height, patches // height, image_size)
        ):
            return (height, patches // height), num_prefix
    return None


def _is_grid(height: int, width: int, image_size: tuple[int, int]) -> bool:
    """Whether the image divided by a stride, both sides rounded alike, can be this grid."""
    full_height, full_width = image_size
    return (
        1 <= height <= full_height
        and 1 <= width <= full_width
        and abs(height * full_width - width * full_height) < max(image_size)
    )


def _class_token(num_prefix: int, info: TokenInfo) -> int | None:
    if num_prefix == 0:
        return None
    return 0 if info.num_prefix is None else info.class_token

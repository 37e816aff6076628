"""Layouts of recorded features, and how to arrange them as maps or tokens."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor


class TokenInfo(NamedTuple):
    """What a model declares about the tokens that are not part of its grid."""

    num_prefix: int | None = None
    """Number of these tokens. None: the model does not declare it."""
    class_token: int | None = None
    """Index of the class token. None: there is none, or the model does not declare it."""


class Layout(NamedTuple):
    """Layout of a stage's feature."""

    order: str
    """Axes: 'BCHW', 'BHWC' (timm's Swin), 'BNC' (most tokens) or 'BCN'."""
    channels: int
    """Width C."""
    grid: tuple[int, int]
    """Height and width of the map, or of the grid that the tokens stand for."""
    num_prefix: int = 0
    """Number of the N tokens that are not part of the grid."""
    class_token: int | None = None
    """Index of the class token among all N tokens, if there is one."""

    def __str__(self) -> str:
        """Return 'BNC 384 @ 14x14 + 1', where the last number counts the tokens off the grid."""
        beside = f' + {self.num_prefix}' if self.num_prefix else ''
        return f'{self.order} {self.channels} @ {self.grid[0]}x{self.grid[1]}{beside}'

    @property
    def is_map(self) -> bool:
        """Whether :meth:`arrange` gives a map rather than tokens."""
        return self.order == 'BCHW'

    def arrange(self, feature: Tensor) -> Tensor:
        """Bring a feature to the layout that necks and losses read.

        Args:
            feature: A tensor of this layout.

        Returns:
            A map (B, C, H, W), or tokens (B, [1 +] H * W, C) in row-major order, after the class
            token if there is one. Other tokens, such as registers, are left out.
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
        # Vision Mamba's class token is in the middle of the patches.
        before, token, after = tokens.tensor_split([self.class_token, self.class_token + 1], 1)
        return torch.cat([token, before, after], 1)


def tensors_of(output: Any) -> list[Tensor]:
    """Return the tensors of a module's output, which may also hold sizes (mmpretrain's Swin)."""
    items = output if isinstance(output, (tuple, list)) else [output]
    return [item for item in items if isinstance(item, Tensor)]


def find_layout(
    shape: Sequence[int], image_size: tuple[int, int], info: TokenInfo | None = None
) -> Layout | None:
    """Infer the layout of a feature from its shape.

    If several layouts fit, BCHW is preferred to BHWC, and BNC to BCN.

    Args:
        shape: Shape of the feature, including the batch.
        image_size: (H, W) of the image. The grid has the same aspect ratio.
        info: What the model declares about its tokens.

    Returns:
        The layout, or None if no layout fits.
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
            found = _find_grid(tokens, image_size, info) if channels > 1 else None
            if found is not None:
                grid, num_prefix = found
                class_token = _class_token(num_prefix, info)
                return Layout(order, channels, grid, num_prefix, class_token)
    return None


def _find_grid(
    tokens: int, image_size: tuple[int, int], info: TokenInfo
) -> tuple[tuple[int, int], int] | None:
    """Return the grid of a number of tokens, and how many of them are not part of it."""
    # CaiT and XCiT add the class token only after their stages.
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
    """Return whether the grid can be the image divided by a stride, both sides rounded alike."""
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

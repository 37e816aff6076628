"""Projectors bring the feature of one stage to a descriptor of a common width."""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

# The grid at which OFA-KD stops to merge tokens: that of the last stage at 224 px.
_GRID = 7
_NUM_HEADS = 4


def separable_conv(in_channels: int, out_channels: int) -> nn.Sequential:
    """A block of two depthwise separable convolutions that halves the resolution.

    (B, in_channels, H, W) -> (B, out_channels, ceil(H/2), ceil(W/2)). Source: MLDR-KD's release.
    """

    def half(out_channels: int, stride: int) -> list[nn.Module]:
        return [
            nn.Conv2d(
                in_channels, in_channels, 3, stride, padding=1, groups=in_channels, bias=False
            ),
            nn.Conv2d(in_channels, out_channels, 1, bias=False),
            nn.BatchNorm2d(out_channels),
            nn.ReLU(inplace=True),
        ]

    return nn.Sequential(*half(in_channels, stride=2), *half(out_channels, stride=1))


def map_projector(in_channels: int, out_channels: int, num_blocks: int) -> nn.Sequential:
    """Project the feature map of a stage and pool it: (B, in_channels, H, W) -> (B, out_channels).

    ``num_blocks`` separable blocks, each doubling the width but the last, which goes to
    ``out_channels``; with no block (the last stage), one 1x1 convolution without bias. Source:
    MLDR-KD's release.
    """
    if num_blocks == 0:
        layers = [nn.Conv2d(in_channels, out_channels, 1, bias=False)]
    else:
        widths = [in_channels * 2**i for i in range(num_blocks)] + [out_channels]
        layers = [separable_conv(*pair) for pair in zip(widths, widths[1:], strict=False)]
    return nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten())


class TokenMerging(nn.Module):
    """Merges each square of neighbouring tokens of a grid into one.

    A class token bypasses it; where the width changes, it goes through as a square of itself.

    Args:
        grid: (H, W) of the tokens.
        in_channels: Their width.
        out_channels: The width of the merged ones.
        factor: The side of the square: 2, or 1 to change the width alone.
        activation: What follows the linear layer.
    """

    def __init__(
        self,
        grid: tuple[int, int],
        in_channels: int,
        out_channels: int,
        factor: int = 2,
        activation: nn.Module | None = None,
    ) -> None:
        super().__init__()
        self.grid = grid
        self.factor = factor
        self.out_grid = tuple(math.ceil(side / factor) for side in grid)
        self.changes_width = in_channels != out_channels
        self.norm = nn.LayerNorm(factor**2 * in_channels)
        self.reduction = nn.Linear(factor**2 * in_channels, out_channels, bias=False)
        self.activation = activation or nn.Identity()

    def forward(self, tokens: Tensor) -> Tensor:
        """(B, [1 +] H * W, C) -> (B, [1 +] H' * W', C'), odd sides padded with zeros."""
        height, width = self.grid
        num_patches = height * width
        class_token, patches = tokens[:, :-num_patches], tokens[:, -num_patches:]
        rows, columns = self.out_grid
        side = self.factor
        patches = patches.unflatten(1, self.grid)
        patches = F.pad(patches, (0, 0, 0, columns * side - width, 0, rows * side - height))
        patches = patches.unflatten(2, (columns, side)).unflatten(1, (rows, side))
        patches = patches.transpose(2, 3).flatten(3).flatten(1, 2)
        if self.changes_width:
            return self._reduce(torch.cat([class_token.repeat(1, 1, side**2), patches], 1))
        return torch.cat([class_token, self._reduce(patches)], 1)

    def _reduce(self, tokens: Tensor) -> Tensor:
        return self.activation(self.reduction(self.norm(tokens)))


class TokenPool(nn.Module):
    """The class token if there is one beside the grid, else the mean: (B, N, C) -> (B, C)."""

    def __init__(self, num_patches: int) -> None:
        super().__init__()
        self.num_patches = num_patches

    def forward(self, tokens: Tensor) -> Tensor:
        return tokens[:, 0] if tokens.shape[1] > self.num_patches else tokens.mean(1)


def token_projector(
    grid: tuple[int, int], in_channels: int, out_channels: int, num_blocks: int
) -> nn.Sequential:
    """Project the tokens of a stage and pool them: (B, N, in_channels) -> (B, out_channels).

    2 x 2 neighbours are merged until the grid is at most 7 x 7, the first merge going to
    ``out_channels``, with GELU; ``num_blocks`` transformer blocks follow, at least one; then the
    class token is taken, or the mean. Source: OFA-KD (custom_forward, custom_model), see
    docs/architectures.md.
    """
    from timm.models.vision_transformer import Block  # half a second, for this projector alone

    merges = max(math.ceil(math.log2(max(grid) / _GRID)), 0)
    factors = [2] * merges
    if not merges and in_channels != out_channels:
        factors = [1]
    layers: list[nn.Module] = []
    for i, factor in enumerate(factors):
        channels, activation = (in_channels, nn.GELU()) if i == 0 else (out_channels, None)
        layers.append(TokenMerging(grid, channels, out_channels, factor, activation))
        grid = layers[-1].out_grid
    # An odd width cannot be shared out among four heads.
    num_heads = math.gcd(out_channels, _NUM_HEADS)
    layers += [Block(out_channels, num_heads) for _ in range(max(num_blocks, 1))]
    return nn.Sequential(*layers, TokenPool(math.prod(grid)))

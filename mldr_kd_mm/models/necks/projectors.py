"""Projectors from the feature of a stage to a descriptor of a common width."""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

# OFA-KD merges tokens down to this grid, that of the last stage at 224 px.
_GRID = 7
_NUM_HEADS = 4


def separable_conv(in_channels: int, out_channels: int) -> nn.Sequential:
    """Build a block of two depthwise separable convolutions that halves the resolution.

    Source: MLDR-KD's release.

    Args:
        in_channels: Width of the input (B, in_channels, H, W).
        out_channels: Width of the output (B, out_channels, ceil(H / 2), ceil(W / 2)).
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
    """Build the projector of a map: (B, in_channels, H, W) -> (B, out_channels).

    It consists of separable blocks, each of which doubles the width except the last one, and
    average pooling. Without blocks (the last stage) it is a 1x1 convolution without bias.

    Source: MLDR-KD's release.

    Args:
        in_channels: Width of the map.
        out_channels: Width of the descriptor.
        num_blocks: Number of separable blocks.
    """
    if num_blocks == 0:
        layers = [nn.Conv2d(in_channels, out_channels, 1, bias=False)]
    else:
        widths = [in_channels * 2**i for i in range(num_blocks)] + [out_channels]
        layers = [separable_conv(*pair) for pair in zip(widths, widths[1:], strict=False)]
    return nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten())


class TokenMerging(nn.Module):
    """Merge each square of neighbouring tokens of a grid into one.

    A class token bypasses the merge. If the width changes, it is repeated to fill a square.

    Args:
        grid: (H, W) of the tokens.
        in_channels: Width of the tokens.
        out_channels: Width of the merged tokens.
        factor: Side of the square: 2, or 1 to only change the width.
        activation: Module after the linear layer. None: no activation.
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
        """Merge (B, [1 +] H * W, C) into (B, [1 +] H' * W', C'), padding odd sides with zeros."""
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
    """Take the class token if there is one, else the mean: (B, N, C) -> (B, C)."""

    def __init__(self, num_patches: int) -> None:
        super().__init__()
        self.num_patches = num_patches

    def forward(self, tokens: Tensor) -> Tensor:
        return tokens[:, 0] if tokens.shape[1] > self.num_patches else tokens.mean(1)


def token_projector(
    grid: tuple[int, int], in_channels: int, out_channels: int, num_blocks: int
) -> nn.Sequential:
    """Build the projector of tokens: (B, N, in_channels) -> (B, out_channels).

    It merges 2 x 2 neighbours until the grid is at most 7 x 7; the first merge changes the width
    and has a GELU. Transformer blocks follow, and finally the class token is taken, or the mean.

    Source: OFA-KD (custom_forward, custom_model), see docs/architectures.md.

    Args:
        grid: (H, W) of the tokens.
        in_channels: Width of the tokens.
        out_channels: Width of the descriptor.
        num_blocks: Number of transformer blocks; at least one is used.
    """
    from timm.models.vision_transformer import Block  # takes half a second, only needed here

    merges = max(math.ceil(math.log2(max(grid) / _GRID)), 0)
    factors = [2] * merges
    if not merges and in_channels != out_channels:
        factors = [1]
    layers: list[nn.Module] = []
    for i, factor in enumerate(factors):
        channels, activation = (in_channels, nn.GELU()) if i == 0 else (out_channels, None)
        layers.append(TokenMerging(grid, channels, out_channels, factor, activation))
        grid = layers[-1].out_grid
    # Four heads need a width that is a multiple of four.
    num_heads = math.gcd(out_channels, _NUM_HEADS)
    layers += [Block(out_channels, num_heads) for _ in range(max(num_blocks, 1))]
    return nn.Sequential(*layers, TokenPool(math.prod(grid)))

"""Projectors bring the feature of one stage to a descriptor of a common width."""

from __future__ import annotations

from torch import nn


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

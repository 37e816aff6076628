"""The projectors: resolutions, widths, and what they are made of."""

from __future__ import annotations

import pytest
import torch
from torch import nn
from torch.testing import assert_close

from mldr_kd_mm.necks.projectors import map_projector, separable_conv


def convolutions(module: nn.Module) -> list[nn.Conv2d]:
    return [m for m in module.modules() if isinstance(m, nn.Conv2d)]


class TestSeparableConv:
    @pytest.mark.parametrize(
        ('size', 'half'), [((8, 8), (4, 4)), ((7, 7), (4, 4)), ((5, 2), (3, 1)), ((1, 1), (1, 1))]
    )
    def test_halves_the_resolution(self, size, half):
        assert separable_conv(4, 6)(torch.randn(2, 4, *size)).shape == (2, 6, *half)

    def test_layers(self):
        depthwise = dict(in_channels=4, out_channels=4, kernel_size=(3, 3), groups=4)
        expected = [
            depthwise | dict(stride=(2, 2)),
            dict(in_channels=4, out_channels=4, kernel_size=(1, 1), groups=1, stride=(1, 1)),
            depthwise | dict(stride=(1, 1)),
            dict(in_channels=4, out_channels=6, kernel_size=(1, 1), groups=1, stride=(1, 1)),
        ]
        found = convolutions(separable_conv(4, 6))
        assert [{key: getattr(conv, key) for key in expected[0]} for conv in found] == expected
        assert all(conv.bias is None for conv in found)

    def test_input_is_not_changed_in_place(self):
        x = torch.randn(2, 4, 4, 4)
        before = x.clone()
        separable_conv(4, 4)(x)
        assert_close(x, before, rtol=0, atol=0)


class TestMapProjector:
    @pytest.mark.parametrize(
        ('num_blocks', 'widths'),
        [(1, [8, 20]), (2, [8, 16, 20]), (3, [8, 16, 32, 20]), (4, [8, 16, 32, 64, 20])],
    )
    def test_widths_double_and_the_last_is_the_projection(self, num_blocks, widths):
        pointwise = [
            (conv.in_channels, conv.out_channels)
            for conv in convolutions(map_projector(8, 20, num_blocks))
            if conv.kernel_size == (1, 1)
        ]
        # Each block has one that keeps the width and one that widens.
        expected = [
            pair for a, b in zip(widths, widths[1:], strict=False) for pair in [(a, a), (a, b)]
        ]
        assert pointwise == expected

    @pytest.mark.parametrize('num_blocks', range(4))
    @pytest.mark.parametrize('size', [(9, 6), (1, 1)])
    def test_makes_a_descriptor(self, num_blocks, size):
        projector = map_projector(4, 10, num_blocks)
        assert projector(torch.randn(2, 4, *size)).shape == (2, 10)

    def test_without_a_block_it_is_linear_in_the_mean(self):
        projector = map_projector(4, 10, 0)
        (weight,) = projector.parameters()
        x = torch.randn(2, 4, 5, 3)
        assert_close(projector(x), x.mean((2, 3)) @ weight.flatten(1).T)

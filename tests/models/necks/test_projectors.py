"""The projectors: resolutions, widths and layers."""

from __future__ import annotations

import pytest
import torch
from torch import nn
from torch.testing import assert_close

from mldr_kd_mm.models.necks.projectors import (
    TokenMerging,
    TokenPool,
    map_projector,
    separable_conv,
    token_projector,
)


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
        # Each block has one convolution that keeps the width and one that changes it.
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


def numbered(height, width, class_token=False):
    """Return tokens of width 1 with their row-major index as value, -1 for the class token."""
    patches = torch.arange(height * width, dtype=torch.float32).reshape(1, -1, 1)
    return torch.cat([torch.full((1, 1, 1), -1.0), patches], 1) if class_token else patches


class TestTokenMerging:
    def merge(self, tokens, grid):
        """Merge tokens without a change by the norm and the linear layer."""
        merging = TokenMerging(grid, 1, 4)
        merging.norm = torch.nn.Identity()
        torch.nn.init.eye_(merging.reduction.weight)
        return merging(tokens), merging.out_grid

    def test_neighbours(self):
        merged, grid = self.merge(numbered(2, 4), (2, 4))
        assert grid == (1, 2)
        assert merged[0].sort().values.tolist() == [[0, 1, 4, 5], [2, 3, 6, 7]]

    def test_odd_sides_are_padded_with_zeros(self):
        merged, grid = self.merge(numbered(3, 3) + 1, (3, 3))
        assert grid == (2, 2)
        found = merged[0].sort().values.tolist()
        assert found == [[1, 2, 4, 5], [0, 0, 3, 6], [0, 0, 7, 8], [0, 0, 0, 9]]

    def test_class_token_of_another_width(self):
        merged, _ = self.merge(numbered(2, 2, class_token=True), (2, 2))
        assert merged[0].tolist()[0] == [-1] * 4
        assert merged.shape == (1, 2, 4)

    def test_class_token_bypasses(self):
        merging = TokenMerging((4, 4), 8, 8)
        tokens = torch.randn(2, 17, 8)
        merged = merging(tokens)
        assert merged.shape == (2, 5, 8)
        assert_close(merged[:, 0], tokens[:, 0], rtol=0, atol=0)
        assert_close(merged[:, 1:], merging(tokens[:, 1:]), rtol=0, atol=0)


@pytest.mark.parametrize('class_token', [0, 1])
@pytest.mark.parametrize(
    ('grid', 'widths', 'merges'),
    [
        ((56, 56), (16, 32), 3),
        ((14, 14), (32, 32), 1),
        ((8, 8), (32, 32), 1),
        ((7, 7), (32, 32), 0),
        ((4, 4), (32, 32), 0),
        ((7, 7), (16, 32), 1),  # merges single tokens, to change the width
        ((16, 4), (16, 30), 2),
        ((1, 1), (32, 32), 0),
    ],
    ids=str,
)
def test_token_projector(grid, widths, merges, class_token):
    project = token_projector(grid, *widths, num_blocks=2)
    assert sum(isinstance(module, TokenMerging) for module in project) == merges
    tokens = torch.randn(3, class_token + grid[0] * grid[1], widths[0])
    assert project(tokens).shape == (3, widths[1])


def test_what_is_pooled():
    pool = TokenPool(num_patches=4)
    tokens = torch.randn(2, 5, 3)
    assert_close(pool(tokens), tokens[:, 0], rtol=0, atol=0)
    assert_close(pool(tokens[:, 1:]), tokens[:, 1:].mean(1))

"""Layouts of features: found from shapes, and arranged in one form."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch.testing import assert_close

from mldr_kd_mm.models.taps.layout import Layout, TokenInfo, find_layout, tensors_of

SQUARE = (224, 224)
VIT, DISTILLED, NO_CLASS = TokenInfo(1, 0), TokenInfo(2, 0), TokenInfo(0, None)


@pytest.mark.parametrize(
    ('shape', 'info', 'expected'),
    [
        ((2, 64, 56, 56), None, Layout('BCHW', 64, (56, 56))),
        ((2, 512, 1, 1), None, Layout('BCHW', 512, (1, 1))),
        ((2, 56, 56, 96), None, Layout('BHWC', 96, (56, 56))),
        ((2, 7, 7, 7), None, Layout('BCHW', 7, (7, 7))),
        ((2, 196, 384), None, Layout('BNC', 384, (14, 14))),
        ((2, 197, 384), None, Layout('BNC', 384, (14, 14), 1, 0)),
        ((2, 197, 384), VIT, Layout('BNC', 384, (14, 14), 1, 0)),
        ((2, 198, 384), DISTILLED, Layout('BNC', 384, (14, 14), 2, 0)),
        ((2, 201, 384), TokenInfo(5, 0), Layout('BNC', 384, (14, 14), 5, 0)),
        ((2, 200, 384), TokenInfo(4, None), Layout('BNC', 384, (14, 14), 4, None)),
        ((2, 197, 192), TokenInfo(1, 98), Layout('BNC', 192, (14, 14), 1, 98)),
        # The class token comes after the stage, as in CaiT.
        ((2, 196, 192), VIT, Layout('BNC', 192, (14, 14))),
        ((2, 512, 196), NO_CLASS, Layout('BCN', 512, (14, 14))),
        # A small ViT whose width could also be a grid.
        ((2, 17, 16), VIT, Layout('BNC', 16, (4, 4), 1, 0)),
    ],
)
def test_of_a_square_image(shape, info, expected):
    assert find_layout(shape, SQUARE, info) == expected


@pytest.mark.parametrize(
    ('shape', 'expected'),
    [
        ((2, 32, 16, 32), Layout('BCHW', 32, (16, 32))),
        ((2, 16, 32, 16), Layout('BHWC', 16, (16, 32))),
        ((2, 8, 13, 25), Layout('BCHW', 8, (13, 25))),
        ((2, 2 * 4, 5), Layout('BNC', 5, (2, 4))),
        ((2, 1 + 8 * 16, 5), Layout('BNC', 5, (8, 16), 1, 0)),
        ((2, 13, 50), Layout('BCN', 13, (5, 10))),
    ],
)
def test_of_an_oblong_image(shape, expected):
    assert find_layout(shape, (100, 200)) == expected


@pytest.mark.parametrize(
    'shape',
    [
        (2, 10),
        (2, 1, 384),
        (2, 1, 196),
        (2, 195, 383),
        (2, 8, 14, 15),
        (2, 3, 300, 300),
        (2, 2, 3, 4, 5),
    ],
)
def test_of_neither(shape):
    assert find_layout(shape, SQUARE) is None


sizes = st.integers(32, 400)


@given(sizes, sizes, st.integers(1, 16), st.integers(1, 9), st.booleans())
def test_any_map_of_any_stride(height, width, stride, channels, up):
    """The layout is found however a model rounds sizes."""
    grid = [-(-side // stride) if up else side // stride for side in (height, width)]
    layout = find_layout((2, channels, *grid), (height, width))
    assert layout == Layout('BCHW', channels, tuple(grid))


TOKENS = torch.arange(2 * 6 * 3).reshape(2, 6, 3)


@pytest.mark.parametrize(
    ('layout', 'feature', 'expected'),
    [
        (Layout('BNC', 3, (2, 3)), TOKENS, TOKENS),
        (Layout('BCN', 3, (2, 3)), TOKENS.transpose(1, 2), TOKENS),
        (Layout('BHWC', 3, (2, 3)), TOKENS.unflatten(1, (2, 3)), TOKENS),
        (Layout('BNC', 3, (1, 5), 1, 0), TOKENS, TOKENS),
        (Layout('BNC', 3, (2, 2), 2, 0), TOKENS, TOKENS[:, [0, 2, 3, 4, 5]]),
        (Layout('BNC', 3, (2, 2), 2, None), TOKENS, TOKENS[:, 2:]),
        (Layout('BNC', 3, (1, 5), 1, 2), TOKENS, TOKENS[:, [2, 0, 1, 3, 4, 5]]),
    ],
)
def test_one_form_of_tokens(layout, feature, expected):
    assert_close(layout.arrange(feature), expected, rtol=0, atol=0)
    assert not layout.is_map


def test_one_form_of_maps():
    feature = torch.randn(2, 3, 4, 4)
    layout = Layout('BCHW', 3, (4, 4))
    assert layout.is_map
    assert layout.arrange(feature) is feature


@pytest.mark.parametrize(
    ('output', 'count'),
    [
        (torch.zeros(1), 1),
        ((torch.zeros(1), (7, 7)), 1),
        ([torch.zeros(1), torch.zeros(2)], 2),
        ({'x': torch.zeros(1)}, 0),
        (None, 0),
    ],
)
def test_tensors_of(output, count):
    assert len(tensors_of(output)) == count

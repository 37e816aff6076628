"""Differences between nested values."""

import pytest

from mldr_kd_mm.utils.nested import NOT_SET, iter_differences


@pytest.mark.parametrize(
    ('one', 'other', 'expected'),
    [
        (dict(a=[1, dict(b=2)]), dict(a=[1, dict(b=2)]), []),
        (dict(a=[1, dict(b=2)]), dict(a=[1, dict(b=3)]), [('a.1.b', 2, 3)]),
        (dict(a=[1], b=2), dict(a=[1, 2], b=3), [('a', [1], [1, 2]), ('b', 2, 3)]),
        (dict(a=None), {}, [('a', None, NOT_SET)]),
        ({}, dict(a=dict(b=1)), [('a', NOT_SET, dict(b=1))]),
        (dict(a=(1, 2)), dict(a=(1, 3)), [('a', (1, 2), (1, 3))]),
    ],
)
def test_iter_differences(one, other, expected):
    assert list(iter_differences(one, other)) == expected

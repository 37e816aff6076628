"""The part that is held out of a training set."""

from collections import Counter

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mldr_kd_mm.datasets.held_out import split_by_class
from mldr_kd_mm.registry import DATASETS
from mldr_kd_mm.utils.errors import ConfigError


@given(
    st.lists(st.integers(0, 3), min_size=40, max_size=80), st.floats(0.2, 0.8), st.integers(0, 9)
)
def test_both_parts_have_the_share_of_each_class(labels, fraction, seed):
    labels = [*range(4)] * 4 + labels
    rest, held_out = split_by_class(labels, fraction, seed)
    assert sorted(rest + held_out) == list(range(len(labels)))
    assert (rest, held_out) == split_by_class(labels, fraction, seed)
    whole, part = Counter(labels), Counter(labels[index] for index in held_out)
    assert part == {label: round(fraction * count) for label, count in whole.items()}


def test_another_seed_holds_out_others():
    labels = [0, 1] * 50
    assert split_by_class(labels, 0.1, 0)[1] != split_by_class(labels, 0.1, 1)[1]


@pytest.mark.parametrize(
    ('labels', 'fraction', 'message'),
    [
        (
            [0] * 20 + [1] * 4,
            0.1,
            'class 1 has 4 images, which leaves its held-out part empty; use a',
        ),
        ([0] * 20 + [1], 0.6, 'class 1 has 1 images, which leaves its training part empty; use a'),
        ([0] * 20, 0, 'held_out=0: must be between 0 and 1'),
        ([0] * 20, 1.5, 'held_out=1.5: must be between 0 and 1'),
    ],
)
def test_mistake_is_one_line(labels, fraction, message):
    with pytest.raises(ConfigError, match=message) as caught:
        split_by_class(labels, fraction, 0)
    assert '\n' not in str(caught.value)


def test_data_set_that_cannot_be_split():
    with pytest.raises(ConfigError, match='a list cannot be split; must be a data set with'):
        DATASETS.build(dict(type='HeldOutPart', dataset=dict(type=list), fraction=0.1))

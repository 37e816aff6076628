"""The ``subset`` option of the data sets."""

from __future__ import annotations

from collections import Counter

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mldr_kd_mm.datasets.subset import take_subset
from mldr_kd_mm.utils.errors import ConfigError

CLASSES = ('ant', 'bee', 'cat', 'dog')


def make(labels: list[int]) -> list[dict]:
    return [{'img': f'image {i}', 'gt_label': label} for i, label in enumerate(labels)]


@st.composite
def requests(draw) -> tuple[list[int], list[int] | None, int | None]:
    """Draw the labels of a data set and a valid subset of it."""
    per_class = draw(st.none() | st.integers(1, 3))
    extra = draw(st.lists(st.integers(0, 3), max_size=20))
    labels = draw(st.permutations([*range(4)] * (per_class or 1) + extra))
    wanted = draw(st.none() | st.lists(st.integers(0, 3), min_size=1, unique=True))
    return labels, wanted, per_class


@settings(deadline=None)
@given(requests())
def test_keeps_the_first_images_of_the_classes_in_order(request_):
    labels, wanted, per_class = request_
    images = make(labels)
    kept, classes = take_subset(images, CLASSES, dict(labels=wanted, per_class=per_class))

    old_labels = range(4) if wanted is None else wanted
    assert list(classes) == [CLASSES[label] for label in old_labels]
    expected = []
    for new, old in enumerate(old_labels):
        of_class = [info['img'] for info in images if info['gt_label'] == old]
        expected += [(image, new) for image in of_class[:per_class]]
    assert Counter((info['img'], info['gt_label']) for info in kept) == Counter(expected)
    positions = [int(info['img'].split()[1]) for info in kept]
    assert positions == sorted(positions)
    assert [info['gt_label'] for info in images] == labels, 'the input was changed'


@pytest.mark.parametrize('subset', [None, {}, dict(labels=None, per_class=None)])
def test_nothing_asked_keeps_everything(subset):
    images = make([0, 1, 1])
    kept, classes = take_subset(images, CLASSES, subset)
    assert kept == images
    assert classes == CLASSES


@pytest.mark.parametrize(
    ('subset', 'message'),
    [
        (dict(labels=[0, 4]), r'subset.labels holds 4; .* from 0 to 3'),
        (dict(labels=[-1]), r'subset.labels holds -1'),
        (dict(labels=['ant']), r"subset.labels holds 'ant'"),
        (dict(labels=[1.0]), r'subset.labels holds 1.0'),
        (dict(labels=[1, 2, 1]), r'subset.labels holds 1 more than once'),
        (dict(labels=[]), r'subset.labels=\[\]: must be None or a list'),
        (dict(labels=10), r'subset.labels=10: must be None or a list'),
        (dict(per_class=0), r'subset.per_class=0: must be a positive integer'),
        (dict(per_class=1.5), r'subset.per_class=1.5'),
        (
            dict(per_class=3),
            r'class 0 \(ant\) must have 3 or more images in this split, it has 2',
        ),
        (dict(labels=[0, 3]), r'class 3 \(dog\) must have 1 or more images .* it has 0'),
        (dict(per_clas=1), r"subset=\{'per_clas': 1\}: must be None or dict"),
        (10, r'subset=10: must be None or dict'),
    ],
)
def test_refuses(subset, message):
    with pytest.raises(ConfigError, match=message) as caught:
        take_subset(make([0, 1, 2, 0, 1, 2]), CLASSES, subset)
    assert '\n' not in str(caught.value)


def test_refuses_fewer_names_than_classes():
    with pytest.raises(ConfigError, match='classes has 2 names, but labels go up to 2'):
        take_subset(make([0, 1, 2]), CLASSES[:2], dict(per_class=1))

"""Schedules of a run with another number of epochs."""

from __future__ import annotations

import pytest

from mldr_kd_mm.engine.schedules import stretch_schedules

WARM_UP = dict(type='LinearLR', by_epoch=True, begin=0, end=4)


def stretch(config, before=300, now=400, per_epoch=10):
    lengths = ({True: length, False: length * per_epoch} for length in (before, now))
    return stretch_schedules(config, *lengths)


@pytest.mark.parametrize(
    ('config', 'changed'),
    [
        (dict(type='CosineAnnealingLR', begin=3, end=300, T_max=296), dict(end=400, T_max=396)),
        (dict(type='CosineAnnealingLR', begin=3, T_max=297), dict(T_max=397)),
        (dict(type='CosineAnnealingLR', by_epoch=False, T_max=3000), dict(T_max=4000)),
        (dict(type='PolyLR', end=300), dict(end=400)),
        (dict(type='OneCycleLR', total_steps=300), dict(total_steps=400)),
        (dict(type='LinearLR', start_factor=1.0, end_factor=0.1, end=300), dict(end=400)),
        (dict(type='CosineAnnealingLR', T_max=50), {}),  # restarts
        (dict(type='CosineAnnealingLR'), {}),  # ends with the run by itself
        (dict(type='MultiStepLR', milestones=[100, 200]), {}),
        (WARM_UP, {}),
        (WARM_UP | dict(end=300), {}),
    ],
)
def test_only_what_ends_with_the_run_is_stretched(config, changed):
    before = dict(config)
    assert stretch(config) == config | changed
    assert config == before
    assert stretch([WARM_UP, config]) == [WARM_UP, config | changed]


def test_a_shorter_run():
    cosine = dict(type='CosineAnnealingLR', begin=3, end=300, T_max=296)
    assert stretch(cosine, now=100) == cosine | dict(end=100, T_max=96)
    assert stretch(cosine, now=3) == cosine
    assert stretch(cosine, now=4) == cosine

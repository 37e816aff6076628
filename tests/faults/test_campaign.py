"""A few random faults; benchmarks/faults.py injects many."""

from __future__ import annotations

import pytest
from faults.campaign import Campaign, small_disk


@pytest.mark.parametrize('processes, seed', [(1, 0), pytest.param(2, 1, marks=pytest.mark.slow)])
def test_nothing_is_lost(tmp_path, processes, seed):
    with small_disk(tmp_path / 'disk', 20_000) as disk:
        Campaign(tmp_path, seed, processes, disk=disk).run(least=5)

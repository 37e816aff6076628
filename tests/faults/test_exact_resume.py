"""A run that is stopped anywhere ends as if it had not been, bit for bit."""

from __future__ import annotations

import pytest
import torch
from faults.runs import configure, run


@pytest.fixture(scope='module')
def straight(tmp_path_factory):
    """What an uninterrupted run of so many processes ends with."""
    known = {}

    def train(processes):
        if processes not in known:
            folder = tmp_path_factory.mktemp(f'straight{processes}')
            known[processes] = run(configure(folder), folder, processes)
        return known[processes]

    return train


def assert_same(found, wanted):
    """Weights, banks and the optimizer's state are equal, bit for bit."""
    for one, other in zip(found, wanted, strict=True):
        assert one['weights'].keys() == other['weights'].keys()
        for name, value in other['weights'].items():
            assert torch.equal(one['weights'][name], value), name
        for place, state in other['optimizer']['state'].items():
            for name, value in state.items():
                assert torch.equal(one['optimizer']['state'][place][name], value), (place, name)
    assert found[0]['best'] == wanted[0]['best']


@pytest.mark.parametrize('processes, iteration', [(1, 2), (1, 5), (1, 12), (2, 4)])
def test_goes_on_inside_of_an_epoch(tmp_path, straight, processes, iteration):
    wanted = straight(processes)
    config = configure(tmp_path)

    stopped = run(config, tmp_path, processes, f'SIGTERM@{iteration}', code=143)
    found = run(config, tmp_path, processes, resume=True)

    assert_same(found, wanted)
    for one, first, whole in zip(found, stopped, wanted, strict=True):
        # No batch is read twice, none is left out, and the hooks count them as before.
        assert first['batches'] + one['batches'] == whole['batches']
        assert len(first['batches']) == iteration

"""Errors on all ranks; other tests cover their use in hooks and data sets."""

from __future__ import annotations

import os
import sys
from pathlib import Path

import pytest
import torch.distributed
from helpers import run_ranks
from mmengine.dist import all_gather_object

from mldr_kd_mm import ConfigError
from mldr_kd_mm.utils.dist import raise_on_all_ranks, run_on_main_process

HERE = Path(__file__)


def test_an_error_in_nested_blocks_is_raised_once_on_all_ranks(tmp_path):
    run_ranks(*((HERE, rank, tmp_path / 'store') for rank in range(2)))


def main(rank, store):
    """Run one of two ranks; rank 0 fails, before, in and after the inner block."""
    torch.distributed.init_process_group(
        'gloo', init_method=f'file://{store}', rank=rank, world_size=2
    )

    def fail(place, fails):
        if rank == 0 and fails == place:
            raise OSError('the disk')

    for fails in ('before', 'inside', 'after'):
        with pytest.raises(OSError if rank == 0 else ConfigError, match='the disk'):
            with raise_on_all_ranks():
                fail('before', fails)
                with raise_on_all_ranks():
                    fail('inside', fails)
                fail('after', fails)
        # The ranks are still synchronised.
        assert all_gather_object(rank) == [0, 1]
    assert run_on_main_process(lambda: rank) == 0


if __name__ == '__main__':
    main(int(sys.argv[1]), *sys.argv[2:])
    # A gloo thread may abort a process during its normal shutdown.
    os._exit(0)

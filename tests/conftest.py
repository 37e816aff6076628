"""What holds for every test."""

import sys

import pytest
import torch
from mmengine.registry import DefaultScope, init_default_scope

import mldr_kd_mm  # noqa: F401  registers everything

# Small operations stall where threads wait for each other.
torch.set_num_threads(1)


@pytest.fixture(autouse=True)
def default_scope():
    """Start in the scope that our configs name, and leave no other behind."""
    init_default_scope('mldr_kd_mm')
    yield
    DefaultScope._instance_dict.clear()
    # What other tests compiled of the same code counts against torch's limit of recompilations.
    if 'torch._dynamo' in sys.modules:
        torch.compiler.reset()

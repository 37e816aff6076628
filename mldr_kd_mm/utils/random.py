"""Seeded random numbers that leave the global random state unchanged."""

from __future__ import annotations

import hashlib
import random
from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np
import torch


@contextmanager
def preserve_global_rng() -> Iterator[None]:
    """Restore the global generators of Python, NumPy and torch (CPU) on exit."""
    states = random.getstate(), np.random.get_state(), torch.get_rng_state()
    try:
        yield
    finally:
        random.setstate(states[0])
        np.random.set_state(states[1])
        torch.set_rng_state(states[2])


def seed_global_rng(*key: int) -> None:
    """Seed the global generators of Python, NumPy and torch (CPU) by a hash of ``key``."""
    hashed = hashlib.blake2b(np.array(key, np.int64).tobytes()).digest()
    random.seed(int.from_bytes(hashed[:8], 'little'))
    np.random.seed(int.from_bytes(hashed[8:12], 'little'))
    # torch.manual_seed would also seed the GPU, which draws the student's dropout.
    torch.default_generator.manual_seed(int.from_bytes(hashed[12:20], 'little'))

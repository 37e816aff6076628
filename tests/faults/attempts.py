"""Make one attempt after another to break what docs/fault_tolerance.md promises."""

from __future__ import annotations

import contextlib
import functools
import io
import logging
import random
import resource
import signal
import tempfile
import time
from collections import Counter, defaultdict
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import NamedTuple

from faults import hostile
from faults.campaign import Campaign, small_disk
from faults.hostile import Attempt, files
from faults.runs import configure, run
from mmengine.registry import DefaultScope, init_default_scope

from mldr_kd_mm.utils.checkpoint import use_safe_loading

TIME_LIMIT = 300  # seconds; runs of processes have limits of their own
MEMORY_LIMIT = 1_000_000  # kB by which an attempt may raise the peak of this process
EPOCHS = 2


@functools.lru_cache
def _undisturbed(shared: Path, processes: int) -> tuple[list[dict], float]:
    """Return the results of an undisturbed run and the seconds that it takes."""
    folder = shared / f'undisturbed{processes}'
    folder.mkdir()
    config = configure(folder / 'run', max_epochs=EPOCHS)
    began = time.monotonic()
    return run(config, folder / 'run', processes), time.monotonic() - began


def _interruption(fault: str, processes: int) -> Callable[[Attempt], str]:
    def interrupt(attempt: Attempt) -> str:
        wanted = _undisturbed(attempt.shared, processes)
        seed = attempt.random.getrandbits(32)
        disk = small_disk(attempt.folder / 'disk', 20_000) if fault == 'fill' else None
        with disk or contextlib.nullcontext() as path:
            if fault == 'fill' and path is None:
                return 'skipped'
            campaign = Campaign(attempt.folder, seed, processes, EPOCHS, path, lambda _: None)
            campaign.once(fault, *wanted)
        return 'resumed'

    return interrupt


# Kind -> function and weight.
KINDS = {
    f'{fault}_{processes}': (_interruption(fault, processes), weight)
    for fault, weights in {
        'kill': (25, 10),
        'stop': (18, 8),
        'interrupt': (14, 6),
        'fill': (14, 6),
        'lose_launcher': (14, 6),
        'damage': (14, 5),
    }.items()
    for processes, weight in enumerate(weights, 1)
} | hostile.KINDS


class Outcome(NamedTuple):
    """One attempt, a line of the log.

    Attributes:
        seed: Seed of its random choices.
        kind: Its name in ``KINDS``.
        result: ``held``, ``refused``, ``listed``, ``resumed``, ``skipped`` or ``failed``.
        seconds: Its duration.
        detail: What failed.
    """

    seed: int
    kind: str
    result: str
    seconds: float
    detail: str = ''

    def __str__(self) -> str:
        detail = ' '.join(self.detail.split())[:300]
        return f'{self.seed}\t{self.kind}\t{self.result}\t{self.seconds:.2f}\t{detail}'.rstrip()

    @classmethod
    def parse(cls, line: str) -> Outcome:
        """Read a line of the log."""
        seed, kind, result, seconds, *detail = line.split('\t')
        return cls(int(seed), kind, result, float(seconds), *detail)


def choose_kind(seed: int) -> str:
    """Return the kind of the attempt with this seed."""
    weights = [weight for _, weight in KINDS.values()]
    return random.Random(seed).choices(list(KINDS), weights)[0]


def attempt(seed: int, kind: str, shared: Path) -> Outcome:
    """Make one attempt.

    Args:
        seed: Seed of its random choices.
        kind: Its name in ``KINDS``.
        shared: Folder of what all attempts share.
    """
    began, peak = time.monotonic(), _peak()
    with tempfile.TemporaryDirectory() as name:
        folder, outside = Path(name, 'attempt'), Path(name, 'outside')
        folder.mkdir()
        outside.mkdir()
        (outside / 'file.pth').write_text('keep')
        before, canary = files(outside), Path(name, 'canary')
        made = Attempt(folder, canary, outside, random.Random(f'{seed} {kind}'), shared)
        try:
            with _quiet(), _time_limit():
                result = KINDS[kind][0](made)
            assert not canary.exists(), 'the code of a file has run'
            assert files(outside) == before, 'files outside have changed'
            assert set(folder.parent.iterdir()) == {folder, outside}, 'files were written outside'
            assert _peak() - peak < MEMORY_LIMIT, f'took {(_peak() - peak) / 1e6:.1f} GB'
            detail = ''
        except (Exception, SystemExit, _TooLong) as error:
            has_run = '; its code has run' if canary.exists() else ''
            result, detail = 'failed', f'{type(error).__name__}: {error}{has_run}'
    return Outcome(seed, kind, result, time.monotonic() - began, detail)


def make_attempts(seeds: range, kind: str | None, log: Path, say: Callable[[str], None]) -> None:
    """Make the attempts that the log lacks, and append each to it.

    Args:
        seeds: Seed of each attempt.
        kind: The kind of all attempts. None: chosen by the seed.
        log: The log.
        say: Called with a line for each failure.
    """
    done = {outcome.seed for outcome in read(log)}
    use_safe_loading()
    with tempfile.TemporaryDirectory() as shared, open(log, 'a', buffering=1) as file:
        for seed in seeds:
            if seed in done:
                continue
            outcome = attempt(seed, kind or choose_kind(seed), Path(shared))
            file.write(f'{outcome}\n')
            if outcome.result == 'failed':
                say(f'{outcome}\n  repeat it: --seed {seed} --count 1 --kind {outcome.kind}')


def read(log: Path) -> list[Outcome]:
    """Read a log; one that does not exist is empty."""
    lines = log.read_text().splitlines() if log.exists() else []
    return [Outcome.parse(line) for line in lines]


def summarize(outcomes: list[Outcome]) -> str:
    """Return a Markdown table of the results of each kind."""
    results = ('held', 'refused', 'listed', 'resumed', 'skipped', 'failed')
    counts: dict[str, Counter] = defaultdict(Counter)
    for outcome in outcomes:
        for row in (outcome.kind, 'all'):
            counts[row][outcome.result] += 1
    rows = [('kind', 'attempts', *results), ('---', *['---:'] * 7)]
    for kind in (*KINDS, 'all'):
        found = counts[kind]
        rows.append((kind, str(found.total()), *(str(found[result]) for result in results)))
    return '\n'.join(f'| {" | ".join(row)} |' for row in rows)


class _TooLong(BaseException):
    """The time limit, which no ``except Exception`` swallows."""


@contextlib.contextmanager
def _time_limit() -> Iterator[None]:
    def stop(*_: object) -> None:
        raise _TooLong(f'more than {TIME_LIMIT} s')

    old = signal.signal(signal.SIGALRM, stop)
    signal.alarm(TIME_LIMIT)
    try:
        yield
    finally:
        signal.alarm(0)
        signal.signal(signal.SIGALRM, old)


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Log nothing, and start and end in the default scope of our configs."""
    init_default_scope('mldr_kd_mm')
    logging.disable(logging.CRITICAL)
    try:
        with contextlib.redirect_stdout(io.StringIO()):
            yield
    finally:
        logging.disable(logging.NOTSET)
        DefaultScope._instance_dict.clear()


def _peak() -> int:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss

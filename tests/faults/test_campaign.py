"""A sample of the campaign; benchmarks/faults.py makes 1,000 attempts."""

from __future__ import annotations

import pytest
from faults import attempts
from faults.attempts import KINDS, Outcome, attempt, choose_kind, make_attempts, read, summarize
from faults.campaign import Campaign, small_disk
from faults.hostile import KINDS as IN_PROCESS
from mmengine.runner import CheckpointLoader


@pytest.mark.parametrize(
    'processes, seed, least',
    [(1, 0, 2), *(pytest.param(*some, 5, marks=pytest.mark.slow) for some in ((1, 1), (2, 1)))],
)
def test_nothing_is_lost(tmp_path, processes, seed, least):
    with small_disk(tmp_path / 'disk', 20_000) as disk:
        Campaign(tmp_path, seed, processes, disk=disk).run(least)


@pytest.fixture(scope='module')
def shared(tmp_path_factory):
    """Return the folder of what all attempts share, with safe loading until the last of them."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(CheckpointLoader, '_schemes', dict(CheckpointLoader._schemes))
        attempts.use_safe_loading()
        yield tmp_path_factory.mktemp('shared')


# Some kinds take longer; the seeds of hostile_run have failed before.
SEEDS = {'paths_in_checkpoint': (0,), 'changed_run': (0,), 'hostile_run': (10, 16, 220)}


@pytest.mark.parametrize('kind', IN_PROCESS)
def test_hostile_files(shared, kind):
    for seed in SEEDS.get(kind, (0, 1)):
        outcome = attempt(seed, kind, shared)
        assert outcome.result != 'failed', outcome


@pytest.mark.slow
def test_a_lost_launcher(shared):
    assert attempt(0, 'lose_launcher_1', shared).result == 'resumed'


@pytest.mark.parametrize(
    ('fault', 'message'),
    [
        (lambda made: made.canary.mkdir(), 'the code of a file has run'),
        (lambda made: (made.outside / 'file.pth').unlink(), 'files outside have changed'),
        (lambda made: made.folder.with_name('new').mkdir(), 'files were written outside'),
        (lambda made: 1 / 0, 'ZeroDivisionError'),
        (lambda made: exit(0), 'SystemExit'),
    ],
)
def test_the_campaign_notices(tmp_path, monkeypatch, fault, message):
    monkeypatch.setitem(KINDS, 'planted', (fault, 1))
    outcome = attempt(0, 'planted', tmp_path)
    assert outcome.result == 'failed' and message in outcome.detail


def test_a_high_peak_of_memory_is_noticed(tmp_path, monkeypatch):
    monkeypatch.setattr(attempts, '_peak', iter((0, 2 * 10**6, 2 * 10**6)).__next__)
    monkeypatch.setitem(KINDS, 'planted', (lambda made: 'held', 1))
    assert 'took 2.0 GB' in attempt(0, 'planted', tmp_path).detail


def test_a_hang_is_noticed(tmp_path, monkeypatch):
    monkeypatch.setattr(attempts, 'TIME_LIMIT', 1)
    monkeypatch.setitem(KINDS, 'planted', (lambda made: attempts.time.sleep(60), 1))
    assert '_TooLong: more than 1 s' in attempt(0, 'planted', tmp_path).detail


def test_a_log_is_continued(tmp_path, monkeypatch):
    made = []

    def note(seed, kind, shared):
        made.append(seed)
        return Outcome(seed, kind, 'failed' if seed == 2 else 'held', 0.1, 'a\tb\nc' * (seed == 2))

    monkeypatch.setattr(attempts, 'attempt', note)
    monkeypatch.setattr(attempts, 'use_safe_loading', lambda: None)
    said = []
    for count in (2, 4):
        make_attempts(range(count), None, tmp_path / 'log.txt', said.append)
    assert made == [0, 1, 2, 3]
    assert len(said) == 1 and f'--seed 2 --count 1 --kind {choose_kind(2)}' in said[0]
    found = read(tmp_path / 'log.txt')
    assert [outcome.seed for outcome in found] == made and found[2].detail == 'a b c'
    assert summarize(found).splitlines()[-1] == '| all | 4 | 3 | 0 | 0 | 0 | 0 | 1 |'

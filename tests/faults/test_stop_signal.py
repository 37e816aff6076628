"""Signals to runs of two processes, through dist_train.sh, torchrun and the Runner."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from faults.runs import configure
from mmengine.config import Config

TOOLS = Path(__file__).parents[2] / 'tools'


def dist_train(folder, *args, fault=None, **variables):
    """Run tools/dist_train.sh in two processes."""
    config = configure(folder)
    config['custom_imports'] = dict(imports=['fault'])
    if fault:
        config['custom_hooks'].append(dict(type='mmengine.Fault', **fault))
    path = folder.with_suffix('.py')
    Config(config).dump(path)
    return subprocess.run(
        ['bash', TOOLS / 'dist_train.sh', path, '2', *args],
        env=os.environ
        | {
            'PYTHON': sys.executable,
            'PYTHONPATH': f'{TOOLS.parent}:{Path(__file__).parent}',
            'GLOO_SOCKET_IFNAME': 'lo',
        }
        | variables,
        capture_output=True,
        text=True,
        timeout=300,
    )


def weights(folder):
    return torch.load(folder / 'epoch_3.pth', weights_only=False)['state_dict']


def assert_ended_as(folder, straight):
    found, wanted = weights(folder), weights(straight)
    for name in wanted:
        assert torch.equal(found[name], wanted[name]), name


@pytest.fixture(scope='module')
def straight(tmp_path_factory):
    """Return the work directory of an uninterrupted run."""
    folder = tmp_path_factory.mktemp('straight') / 'run'
    ended = dist_train(folder)
    assert ended.returncode == 0, ended.stderr
    return folder


def stop(folder, signal, code):
    """Send a signal to torchrun in the middle of a run; return the checkpoint that it saved."""
    stopped = dist_train(folder, fault=dict(signal=signal, iteration=4, rank=1, to_parent=True))
    assert stopped.returncode == code, stopped.stderr
    assert 'Stop signal: saved' in stopped.stdout + stopped.stderr
    saved = Path((folder / 'last_checkpoint').read_text())
    assert saved.name.startswith('iter_')
    return saved


@pytest.mark.parametrize(
    'signal, code', [('SIGINT', 130), pytest.param('SIGUSR1', 143, marks=pytest.mark.slow)]
)
def test_torchrun_hands_it_on(tmp_path, signal, code):
    stop(tmp_path / 'run', signal, code)


@pytest.mark.slow
def test_a_stopped_run_ends_as_if_nothing_had_stopped_it(tmp_path, straight):
    folder = tmp_path / 'run'
    saved = stop(folder, 'SIGTERM', 143)

    ended = dist_train(folder, '--resume')

    assert ended.returncode == 0, ended.stderr
    assert_ended_as(folder, straight)
    assert not saved.exists()  # replaced by the checkpoint of the epoch


@pytest.mark.slow
def test_a_killed_process_ends_the_others_with_one_line(tmp_path, straight):
    folder = tmp_path / 'run'

    ended = dist_train(folder, fault=dict(signal='SIGKILL', iteration=4, rank=1))

    assert ended.returncode == 137
    assert 'Traceback' not in ended.stderr
    assert 'another process of this run is gone' in ended.stderr
    assert 'error: the process of rank 1 was killed by SIGKILL' in ended.stderr
    assert dist_train(folder, '--resume').returncode == 0
    assert_ended_as(folder, straight)


@pytest.mark.slow
def test_torchrun_starts_the_run_again(tmp_path, straight):
    folder = tmp_path / 'run'

    ended = dist_train(folder, fault=dict(signal='SIGKILL', iteration=4, rank=1), MAX_RESTARTS='2')

    assert ended.returncode == 0, ended.stderr
    assert_ended_as(folder, straight)

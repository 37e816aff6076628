"""The launch scripts, with real processes."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

TOOLS = Path(__file__).parents[2] / 'tools'

pytestmark = pytest.mark.skipif(
    torch.cuda.is_available() and torch.cuda.device_count() < 2, reason='needs no GPU, or two'
)


def bash(script, *args, **variables):
    """Run a script of ``tools/`` in the current directory."""
    return subprocess.run(
        ['bash', TOOLS / script, *map(str, args)],
        env=os.environ | {'PYTHON': sys.executable} | variables,
        capture_output=True,
        text=True,
        timeout=120,
    )


def train(config, work_dir):
    # Eight pictures, two per process and step: two iterations per epoch with both processes.
    run = bash('dist_train.sh', config, 2, '--work-dir', work_dir)
    assert run.returncode == 0, run.stderr
    assert 'Epoch(train) [1][2/2]' in run.stdout
    assert run.stdout.count('Saving checkpoint') == 1


# A run through torchrun in CI: faults/test_stop_signal.py.
@pytest.mark.slow
def test_two_processes_train(config, tmp_path):
    train(config, tmp_path / 'run')


@pytest.mark.slow
def test_two_processes_test(config, tmp_path):
    work_dir = tmp_path / 'run'
    train(config, work_dir)
    tested = bash('dist_test.sh', config, work_dir / 'epoch_1.pth', 2, '--work-dir', work_dir)
    assert tested.returncode == 0, tested.stderr
    assert 'Epoch(test) [2/2]    accuracy/top1' in tested.stdout


@pytest.mark.slow
def test_mistake_is_one_line(config, tmp_path):
    run = bash('dist_train.sh', config, 2, '--cfg-options', 'model.type=Mystery')
    assert run.returncode == 2
    assert [line[:22] for line in run.stderr.splitlines() if 'error' in line] == [
        'error: model: Mystery '
    ]
    assert 'Traceback' not in run.stderr
    assert list((tmp_path / 'here').iterdir()) == []


@pytest.mark.parametrize('gpus', ['two', pytest.param('0', marks=pytest.mark.slow)])
def test_number_of_processes(config, gpus):
    run = bash('dist_train.sh', config, gpus)
    assert run.returncode != 0
    message = f"error: GPUS must be a number of processes, 1 or more, got '{gpus}'\n"
    assert run.stderr.endswith(message)


@pytest.mark.parametrize(
    ('variables', 'expected'),
    [
        ({}, ['--nnodes=1', '--node-rank=0', '--master-addr=127.0.0.1']),
        ({'PORT': '29123'}, ['--master-port=29123']),
        ({'NNODES': '2', 'NODE_RANK': '1'}, ['--nnodes=2', '--node-rank=1', '--master-port=29500']),
        ({'MASTER_ADDR': '192.0.2.1'}, ['--master-addr=192.0.2.1']),
    ],
)
def test_torchrun_arguments(read_tool, monkeypatch, variables, expected):
    for name in ('NNODES', 'NODE_RANK', 'MASTER_ADDR', 'PORT'):
        monkeypatch.delenv(name, raising=False)
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    # The launcher sets them for the whole process; monkeypatch restores them.
    monkeypatch.setenv('OMP_NUM_THREADS', '1')
    monkeypatch.setenv('MKL_NUM_THREADS', '1')
    monkeypatch.setattr(sys, 'argv', ['_launch.py', '2', 'train.py', 'config.py'])
    given = []
    monkeypatch.setattr('torch.distributed.run.main', given.extend)
    read_tool('_launch')['main']()
    assert given[-2:] == ['train.py', 'config.py']
    assert {'--nproc-per-node=2', *expected} <= set(given)


def test_slurm(tmp_path):
    srun = tmp_path / 'srun'
    srun.write_text('#!/bin/sh\necho "$MASTER_PORT" "$@"\n')
    srun.chmod(0o755)
    path = f'{tmp_path}:{os.environ["PATH"]}'
    size = dict(GPUS='16', SRUN_ARGS='--quiet --time=1', PORT='29123')
    run = bash('slurm_train.sh', 'gpu', 'job', 'c.py', 'out', '--method', 'kd', PATH=path, **size)
    assert run.returncode == 0, run.stderr
    port, *words = run.stdout.split()
    assert port == '29123'
    assert {'--partition=gpu', '--gres=gpu:8', '--ntasks=16', '--quiet', '--time=1'} <= set(words)
    assert words[-7:] == ['c.py', '--work-dir', 'out', '--launcher', 'slurm', '--method', 'kd']


@pytest.mark.parametrize('script', ['dist_train.sh', 'dist_test.sh', 'slurm_train.sh'])
def test_usage(script):
    run = bash(script)
    assert run.returncode == 2
    assert run.stderr.startswith(f'usage: {script} ')

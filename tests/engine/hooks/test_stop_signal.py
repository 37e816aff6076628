"""Signals in the last validation, and data-loader workers after a run with signal handlers."""

import os
import signal
import subprocess
import sys
from contextlib import suppress
from pathlib import Path

import pytest
from helpers import NORMALIZATION, resnet, train
from mmengine.hooks import Hook

from mldr_kd_mm.registry import HOOKS
from mldr_kd_mm.utils.dist import DeferredAllReduce


@HOOKS.register_module(force=True)
class Signal(Hook):
    """Send a signal in each validation."""

    def __init__(self, number):
        self.number = number

    def after_val_epoch(self, runner, metrics=None):
        os.kill(os.getpid(), self.number)


@pytest.mark.parametrize('number, code', [(signal.SIGTERM, 143), (signal.SIGINT, 130)])
def test_last_validation_is_not_too_late(tmp_path, number, code):
    hooks = dict(
        checkpoint=dict(type='AtomicCheckpointHook', save_best='accuracy/top1'),
        stop_signal=dict(type='StopSignalHook'),
        signal=dict(type='mldr_kd_mm.Signal', number=number),
    )
    model = resnet(data_preprocessor=dict(NORMALIZATION))
    with pytest.raises(SystemExit) as stopped:
        train(model, tmp_path / 'run', default_hooks=hooks)
    assert stopped.value.code == code
    assert (tmp_path / 'run/epoch_1.pth').is_file()
    assert (tmp_path / 'run/best_accuracy_top1_epoch_1.pth').is_file()


@pytest.mark.parametrize('with_others', [True, False])
def test_one_all_reduce_in_each_step(tmp_path, monkeypatch, with_others):
    """NonFiniteHook's, if there is one."""
    calls = []

    def reduce(self, flags):
        calls.append(len(flags))
        if len(calls) == 2:
            os.kill(os.getpid(), signal.SIGTERM)
        return flags

    monkeypatch.setattr(DeferredAllReduce, 'reduce', reduce)
    hooks = dict(stop_signal=dict(type='StopSignalHook'))
    if with_others:
        hooks |= dict(non_finite=dict(type='NonFiniteHook'))
    model = resnet(data_preprocessor=dict(NORMALIZATION))
    with pytest.raises(SystemExit, match='143'):
        train(model, tmp_path / 'run', default_hooks=hooks)
    # The signal arrives after the flags of the second step are known.
    assert calls == [4 if with_others else 1] * 3
    assert (tmp_path / 'run/iter_3.pth').is_file()


LEAVES_WORKERS = """
import sys
from pathlib import Path
from helpers import resnet, runner_config
from mmengine.config import Config
from mmengine.runner import Runner

config = runner_config(resnet(data_preprocessor=dict(num_classes=10)), Path(sys.argv[1]))
config['train_dataloader'].update(num_workers=2, persistent_workers=True)
config['default_hooks']['stop_signal'] = dict(type='StopSignalHook')
runner = Runner.from_cfg(Config(config))
runner.train()
runner.itself = runner
"""


def test_workers_that_ignore_signals_end_with_their_process(tmp_path):
    """multiprocessing's SIGTERM at exit has no effect on them."""
    root = Path(__file__).parents[3]
    environment = os.environ | {'PYTHONPATH': f'{root}:{root / "tests"}', 'OMP_NUM_THREADS': '1'}
    command = [sys.executable, '-c', LEAVES_WORKERS, str(tmp_path / 'run')]
    process = subprocess.Popen(
        command, env=environment, start_new_session=True, stderr=subprocess.PIPE, text=True
    )
    try:
        stderr = process.communicate(timeout=120)[1]
        assert process.returncode == 0
        assert 'Traceback' not in stderr
    finally:
        with suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)


@pytest.mark.parametrize('launched', [True, False])
def test_a_run_stops_if_its_launcher_is_gone(tmp_path, monkeypatch, launched):
    """Without a launcher the parent is a shell, which may end before the run."""
    parents = iter([41, 41, 41])  # while the hook is built, and in two iterations
    monkeypatch.setattr(os, 'getppid', lambda: next(parents, 1))
    monkeypatch.delenv('TORCHELASTIC_RUN_ID', raising=False)
    if launched:
        monkeypatch.setenv('TORCHELASTIC_RUN_ID', 'none')
    hooks = dict(stop_signal=dict(type='StopSignalHook'))
    model = resnet(data_preprocessor=dict(NORMALIZATION))

    if launched:
        with pytest.raises(SystemExit, match='143'):
            train(model, tmp_path, default_hooks=hooks)
        assert (tmp_path / 'iter_3.pth').exists()
    else:
        train(model, tmp_path, default_hooks=hooks)
        assert (tmp_path / 'epoch_1.pth').exists()

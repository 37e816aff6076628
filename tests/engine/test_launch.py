"""Runs in this process, and what is left of them."""

import errno
import gc
import multiprocessing.resource_sharer
import os
import signal
import time
from datetime import timedelta
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from helpers import resnet, runner_config
from mmengine.config import Config, ConfigDict

from mldr_kd_mm import ConfigError
from mldr_kd_mm.engine import launch
from mldr_kd_mm.engine.hooks import StopSignalHook
from mldr_kd_mm.engine.launch import (
    _continues_run,
    fit_to_machine,
    join_processes,
    set_loader_defaults,
    start,
)
from mldr_kd_mm.engine.preflight import preflight

SIGNALS = (signal.SIGTERM, signal.SIGINT, signal.SIGUSR1)


@pytest.fixture
def run(tmp_path, monkeypatch):
    """Return a function that trains, and calls a function in the second iteration."""

    def run(what, workers=0, start=start):
        def call(hook, runner, batch_idx, data_batch=None):
            if runner.iter == 1:
                what()

        monkeypatch.setattr(StopSignalHook, 'before_train_iter', call)
        config = runner_config(resnet(data_preprocessor=dict(num_classes=10)), tmp_path / 'run')
        for loader in ('train_dataloader', 'val_dataloader'):
            config[loader].update(num_workers=workers, persistent_workers=workers > 0)
        config['default_hooks']['stop_signal'] = dict(type='StopSignalHook')
        start(Config(dict(config, launcher='none')), 'train')

    return run


def test_a_stopped_run_leaves_no_worker_and_no_handler(run):
    handlers = list(map(signal.getsignal, SIGNALS))
    other = multiprocessing.get_context('fork').Process(target=time.sleep, args=(60,), daemon=True)
    other.start()
    children = set(multiprocessing.active_children())

    def stop():
        assert set(multiprocessing.active_children()) > children
        os.kill(os.getpid(), signal.SIGTERM)

    try:
        with pytest.raises(SystemExit) as stopped:
            run(stop, workers=2)
        assert stopped.value.code == 143
        assert set(multiprocessing.active_children()) == children
    finally:
        other.kill()
    assert list(map(signal.getsignal, SIGNALS)) == handlers
    del stopped
    began = time.monotonic()
    gc.collect()  # torch would wait ten seconds for each worker that ignores signals
    assert time.monotonic() - began < 5


def test_a_failed_run_leaves_no_handler(run):
    handlers = list(map(signal.getsignal, SIGNALS))

    def fail():
        raise ConfigError('model: is wrong')

    with pytest.raises(ConfigError):
        run(fail)
    assert list(map(signal.getsignal, SIGNALS)) == handlers


def test_a_killed_worker_ends_the_run_with_one_line(run, capsys):
    others = set(multiprocessing.active_children())

    def kill():
        workers = set(multiprocessing.active_children()) - others
        os.kill(workers.pop().pid, signal.SIGKILL)

    with pytest.raises(SystemExit) as stopped:
        run(kill, workers=1, start=launch.run)
    assert stopped.value.code == 1
    (line,) = capsys.readouterr().err.splitlines()
    # Either torch notices the dead worker first, or the connection to it breaks first.
    assert line.startswith('error: a data-loader worker was killed (')
    assert line.endswith('--resume continues from the last checkpoint')


def test_a_connection_that_breaks_with_its_worker_is_one_line(run, capsys, tmp_path):
    sharer = multiprocessing.resource_sharer._resource_sharer

    with pytest.raises(SystemExit) as stopped:
        run(lambda: sharer.get_connection((str(tmp_path / 'gone'), 0)), start=launch.run)
    assert stopped.value.code == 1
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith('error: a data-loader worker was killed (')
    with pytest.raises(FileNotFoundError):
        run(lambda: open(tmp_path / 'gone'), start=launch.run)


@pytest.mark.parametrize('number', [errno.ENOSPC, errno.EROFS, errno.EIO])
def test_a_failure_of_the_disk_is_one_line(run, capsys, number):
    def fail():
        raise OSError(number, os.strerror(number), 'run/log.json')

    with pytest.raises(SystemExit) as stopped:
        run(fail, start=launch.run)
    assert stopped.value.code == 1
    (line,) = capsys.readouterr().err.splitlines()
    assert f'run/log.json cannot be read or written: {os.strerror(number)};' in line


@pytest.mark.parametrize('field', ['work_dir', 'filename'])
def test_names_must_be_utf8(field):
    name = os.fsdecode(b'/tmp/run\xff')
    if field == 'filename':
        cfg = Config(dict(work_dir='run'), cfg_text='work_dir = "run"', filename=name)
    else:
        cfg = Config(dict(work_dir=name))
    with pytest.raises(ConfigError, match='must be UTF-8') as caught:
        preflight(cfg)
    assert str(caught.value).isascii()


def test_current_directory_must_be_utf8(tmp_path, monkeypatch):
    folder = Path(os.fsdecode(bytes(tmp_path) + b'/\xff'))
    folder.mkdir()
    monkeypatch.chdir(folder)
    with pytest.raises(ConfigError, match='work_dir=.*must be UTF-8'):
        preflight(Config(dict(work_dir='run')))


@pytest.fixture
def joined(monkeypatch):
    """Return a function that joins the processes of a config; it returns torch's arguments."""

    def join(over_gloo, attempt, **options):
        monkeypatch.setenv('TORCHELASTIC_RESTART_COUNT', str(attempt))
        monkeypatch.setenv('LOCAL_RANK', '0')
        found = {}
        store = torch.distributed.HashStore()
        monkeypatch.setattr(torch.distributed, 'rendezvous', lambda _: iter([(store, 0, 1)]))
        monkeypatch.setattr(
            torch.distributed,
            'init_process_group',
            lambda backend, **kwargs: found.update(kwargs, backend=backend),
        )
        monkeypatch.setattr(torch.cuda, 'set_device', lambda _: None)
        cfg = Config(dict(launcher='pytorch', env_cfg=dict(dist_cfg=options)))
        join_processes(cfg, over_gloo)
        return found

    return join


@pytest.mark.parametrize('over_gloo, attempt', [(True, 0), (True, 2), (False, 1)])
def test_processes_wait_for_each_other_as_long_as_the_config_says(joined, over_gloo, attempt):
    found = joined(over_gloo, attempt, backend='nccl', timeout=90)
    assert found['timeout'] == timedelta(seconds=90)
    assert found['backend'] == ('gloo' if over_gloo else 'nccl')
    assert joined(over_gloo, attempt)['timeout'] is None  # torch's default


@pytest.mark.parametrize('timeout', ['90', 0, -1, float('inf'), True])
def test_timeout_must_be_a_time(joined, timeout):
    with pytest.raises(ConfigError, match='env_cfg.dist_cfg.timeout='):
        joined(True, 0, timeout=timeout)


@pytest.mark.parametrize(
    ('fields', 'expected'),
    [
        ({}, False),
        (dict(load_from='runs/a/epoch_1.pth'), False),
        (dict(resume=True), True),
        (dict(resume=True, load_from='runs/a/epoch_1.pth'), True),
        (dict(resume=True, load_from='runs/../runs/a/iter_7.pth'), True),
        (dict(resume='runs/a/epoch_1.pth'), True),
        (dict(resume=True, load_from='disk/a/epoch_1.pth'), True),
        (dict(resume=True, load_from='runs/b/epoch_1.pth'), False),  # a fork
        (dict(resume=True, load_from='https://host/a/epoch_1.pth'), False),
        (dict(resume='runs/b/epoch_1.pth'), False),
    ],
)
def test_which_run_continues_that_of_its_work_directory(tmp_path, monkeypatch, fields, expected):
    monkeypatch.chdir(tmp_path)
    hooks = dict(checkpoint=dict(type='AtomicCheckpointHook', out_dir='disk'))
    cfg = Config(dict(work_dir='runs/a', default_hooks=hooks) | fields)
    assert _continues_run(cfg) is expected


def test_no_more_workers_than_cores():
    cores = len(os.sched_getaffinity(0))
    for wanted, used in ((0, 0), (1, 1), (cores + 7, cores)):
        loader = ConfigDict(num_workers=wanted)
        set_loader_defaults(loader)
        assert (loader.num_workers, loader.persistent_workers) == (used, used > 0)


@pytest.mark.parametrize('deterministic', [True, False])
def test_determinism_configures_cublas(monkeypatch, deterministic):
    monkeypatch.setattr(os, 'environ', {})
    fit_to_machine(Config(dict(randomness=dict(seed=0, deterministic=deterministic))))
    assert os.environ == ({'CUBLAS_WORKSPACE_CONFIG': ':4096:8'} if deterministic else {})


@pytest.mark.parametrize(
    ('model', 'saved', 'last'),
    [
        (dict(student={}), True, '      mldr-kd export a/epoch_1.pth a/student'),
        (dict(student={}), False, 'Next: mldr-kd report a'),
        (dict(), True, 'Next: mldr-kd report a'),
    ],
)
def test_next_commands(model, saved, last, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    if saved:
        (tmp_path / 'a').mkdir()
        (tmp_path / 'a/epoch_1.pth').touch()
    hub = SimpleNamespace(runtime_info=dict(last_ckpt=f'{tmp_path}/a/epoch_1.pth'))
    launch._print_next(Config(dict(model=model, work_dir='a')), SimpleNamespace(message_hub=hub))
    lines = capsys.readouterr().out.splitlines()
    assert (lines[0], lines[-1]) == ('Next: mldr-kd report a', last)

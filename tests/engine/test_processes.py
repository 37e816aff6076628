"""Concurrent runs: their order, their places, and that none outlives its parent."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from rich.console import Console

from mldr_kd_mm.engine import processes
from mldr_kd_mm.engine.processes import Run, RunFailed, RunQueue, check_code, train_all


def fake_runs(folder, **commands):
    """Return runs of other commands, by name; the part after ``<`` names the run it needs."""
    runs = {}

    class Fake(Run):
        def command(self):
            return [sys.executable, '-c', commands[self.name]]

    for name in commands:
        needs = runs.get(name.split('_after_')[-1])
        runs[name] = Fake(name, Path('none.py'), folder / name, 1, needs)
    return list(runs.values())


def train(runs, places, on_end=None):
    ends = {}
    queue = RunQueue(runs, on_end or (lambda run, ended: ends.update({run.name: ended})))
    with open(os.devnull, 'w') as nowhere:
        train_all(queue, places, Console(file=nowhere))
    return ends


def test_runs_wait_for_what_they_need(tmp_path):
    stamp = "open('{}', 'x').close()"
    runs = fake_runs(
        tmp_path,
        good=f'import time; time.sleep(1); {stamp.format(tmp_path / "made")}',
        bad='print("this is why"); raise SystemExit(3)',
        pupil_after_good=f'open({str(tmp_path / "made")!r})',
        pupil_after_bad=stamp.format(tmp_path / 'never'),
    )
    ends = train(runs, [{}] * 4)
    assert {name: end.code for name, end in ends.items()} == dict(good=0, bad=3, pupil_after_good=0)
    assert not (tmp_path / 'never').exists()
    assert all(end.memory > 1 for end in ends.values())
    with pytest.raises(RunFailed) as error:
        check_code(runs[1], ends['bad'])
    assert str(error.value) == (
        f'bad ended with code 3, see {tmp_path}/bad/output.txt: this is why'
    )


def test_each_place_has_one_run_at_a_time(tmp_path):
    script = (
        'import os, time; name = os.environ["PLACE"]; os.mkdir(name); time.sleep(0.2); '
        'os.rmdir(name); print(name)'
    )
    runs = fake_runs(tmp_path, **{f'run{number}': script for number in range(4)})
    places = [{'PLACE': str(tmp_path / name)} for name in ('left', 'right')]
    ends = train(runs, places)
    assert [ends[run.name].code for run in runs] == [0] * 4
    used = {run.output.read_text().strip() for run in runs}
    assert used == {place['PLACE'] for place in places}


def test_error_ends_what_is_at_work(tmp_path):
    runs = fake_runs(
        tmp_path,
        long='import os, time; print(os.getpid(), flush=True); time.sleep(60)',
        short='raise SystemExit(1)',
    )
    with pytest.raises(RunFailed):
        train(runs, [{}] * 2, on_end=check_code)
    pid = int(runs[0].output.read_text() or 0)
    with pytest.raises(ProcessLookupError):
        os.kill(pid, 0)


# On SIGTERM, wait until the other run is told, too.
UNTIL_BOTH_ARE_TOLD = """
import os, pathlib, signal, sys, time
def end(*_):
    pathlib.Path(f'{folder}/told_{name}').touch()
    for _ in range(200):
        if os.path.exists(f'{folder}/told_{other}'):
            print('together', flush=True)
            os._exit(0)
        time.sleep(0.05)
    os._exit(1)
signal.signal(signal.SIGTERM, end)
pathlib.Path(f'{folder}/begun_{name}').touch()
time.sleep(60)
"""


def test_all_runs_are_told_to_end_before_one_is_waited_for(tmp_path):
    def script(name, other):
        names = dict(folder=str(tmp_path), name=name, other=other)
        return f'globals().update({names})' + UNTIL_BOTH_ARE_TOLD

    until_both_began = (
        f'import os, time\nwhile len(os.listdir({str(tmp_path)!r})) < 5: time.sleep(0.05)\n'
        'raise SystemExit(1)'
    )
    runs = fake_runs(tmp_path, a=script('a', 'b'), b=script('b', 'a'), c=until_both_began)
    with pytest.raises(RunFailed):
        train(runs, [{}] * 3, on_end=check_code)
    assert [run.output.read_text() for run in runs[:2]] == ['together\n'] * 2


@pytest.mark.parametrize('number', [signal.SIGINT, signal.SIGTERM])
def test_an_interrupt_waits_for_the_end_of_a_block(monkeypatch, number):
    came = []
    previous = signal.signal(number, lambda *_: came.append(number))
    try:
        with processes.delayed_interrupts():
            os.kill(os.getpid(), number)
            assert not came
        assert came == [number]
    finally:
        signal.signal(number, previous)


@pytest.mark.parametrize('number', [signal.SIGINT, signal.SIGTERM])
def test_a_stopped_queue_exits_with_one_line(capsys, number):
    handler = signal.getsignal(signal.SIGTERM)
    # A shell's background job ignores Ctrl-C, and the tests may be one.
    of_interrupt = signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        with pytest.raises(SystemExit) as end, processes.exit_when_stopped('do that'):
            os.kill(os.getpid(), number)
            time.sleep(5)
    finally:
        signal.signal(signal.SIGINT, of_interrupt)
    assert end.value.code == 130
    assert capsys.readouterr().err == 'stopped; do that\n'
    assert signal.getsignal(signal.SIGTERM) is handler


def test_curve_of_a_continued_run(tmp_path):
    first = [
        {'loss': 3.0, 'epoch': 1, 'step': 50},
        {'loss': 2.5, 'epoch': 1, 'step': 100},
        {'accuracy/top1': 10.0, 'step': 1},
        {'loss': 2.0, 'epoch': 2, 'step': 150},
        {'accuracy/top1': 20.0, 'step': 2},
        {'loss': 1.0, 'epoch': 3, 'step': 250},
    ]
    second = [{'loss': 1.9, 'epoch': 2, 'step': 150}, {'accuracy/top1': 21.0, 'step': 2}]
    (run,) = fake_runs(tmp_path, continued='')
    assert (run.curve('loss'), run.epochs_done(), run.latest_accuracy()) == ({}, 0, '')
    # Written in reverse order: the order of the logs follows from their names.
    for day, records in ((2, second), (1, first)):
        log = run.work_dir / f'2026010{day}_000000/vis_data/scalars.json'
        log.parent.mkdir(parents=True)
        log.write_text(''.join(f'{json.dumps(record)}\n' for record in records) + '{"loss": 0')
    assert run.curve('accuracy/top1') == {1: 10.0, 2: 21.0}
    assert run.curve('loss') == {1: 2.5, 2: 1.9, 3: 1.0}
    assert run.epochs_done() == 2
    assert run.latest_accuracy() == '21.0 %'


def test_places(monkeypatch):
    monkeypatch.delenv('CUDA_VISIBLE_DEVICES', raising=False)
    monkeypatch.setattr(torch.cuda, 'is_available', lambda: False)
    monkeypatch.setattr(os, 'sched_getaffinity', lambda _: {0, 1, 5})
    assert processes.places(None) == [{'OMP_NUM_THREADS': '1'}] * 3
    assert processes.places(2) == [{'OMP_NUM_THREADS': '1'}] * 2
    monkeypatch.setattr(torch.cuda, 'is_available', lambda: True)
    monkeypatch.setattr(torch.cuda, 'device_count', lambda: 2)
    zero, one = ({'CUDA_VISIBLE_DEVICES': number} for number in '01')
    assert processes.places(None) == [zero, one]
    assert processes.places(3) == [zero, one, zero]
    monkeypatch.setenv('CUDA_VISIBLE_DEVICES', '4,GPU-5')
    assert processes.places(None) == [{'CUDA_VISIBLE_DEVICES': d} for d in ('4', 'GPU-5')]


@pytest.mark.skipif(sys.platform != 'linux', reason="uses Linux's prctl")
def test_runs_end_when_their_parent_is_killed(tmp_path):
    """The parent is forked, since a new one would import everything again."""
    told = tmp_path / 'told'
    child = f'import signal, sys, time; signal.signal(15, lambda *_: (open({str(told)!r}, "x"), '
    child += 'sys.exit())); print("ready", flush=True); time.sleep(60)'
    read, write = os.pipe()
    parent = os.fork()
    if parent == 0:
        end = processes._end_with_parent
        subprocess.Popen([sys.executable, '-c', child], stdout=write, preexec_fn=end)
        time.sleep(60)
        os._exit(0)
    os.close(write)
    with os.fdopen(read) as lines:
        assert lines.readline() == 'ready\n'
        os.kill(parent, signal.SIGKILL)
        os.waitpid(parent, 0)
        assert lines.read() == '', 'the pipe is closed, since the child has ended'
    assert told.exists()

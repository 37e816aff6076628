"""Concurrent processes of ``tools/train.py``, observed through the logs of their Runners."""

from __future__ import annotations

import ctypes
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import torch
from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    TaskID,
    TextColumn,
    TimeRemainingColumn,
)

from mldr_kd_mm.evaluation.logged_run import ACCURACY, curve, read_records
from mldr_kd_mm.utils.logging import percent, plural
from mldr_kd_mm.utils.workers import available_cores

TRAIN = Path(__file__).resolve().parents[1] / '.mim/tools/train.py'
# Polling interval in seconds.
PAUSE = 0.5

_C = ctypes.CDLL(None)
_PR_SET_PDEATHSIG = 1  # of Linux's prctl


class RunFailed(Exception):
    """A run ended with an error; the message is one line."""


@dataclass(eq=False)
class Run:
    """A run of ``tools/train.py``, observed through the log of its Runner.

    Attributes:
        name: Name in the progress display.
        config: The config to train.
        work_dir: The Runner's work directory.
        epochs: Total number of epochs.
        needs: The run that must succeed before this one can start.
    """

    name: str
    config: Path
    work_dir: Path
    epochs: int
    needs: Run | None

    @property
    def output(self) -> Path:
        """The file that receives the output of the run."""
        return self.work_dir / 'output.txt'

    def prepare(self) -> None:
        """Create the files and directories that the run needs."""
        self.work_dir.mkdir(parents=True, exist_ok=True)

    def arguments(self) -> list[str]:
        """Return arguments of ``tools/train.py`` besides the config and the work directory."""
        return []

    def command(self) -> list[str]:
        """Return the command that starts the run."""
        train = [sys.executable, str(TRAIN), str(self.config)]
        return [*train, '--work-dir', str(self.work_dir), *self.arguments()]

    def records(self) -> list[dict]:
        """Return the records that the run has logged so far, in order of time."""
        return read_records(self.work_dir)

    def curve(self, key: str) -> dict[int, float]:
        """Return the latest logged value of each epoch under a name."""
        return curve(self.records(), key)

    def epochs_done(self) -> int:
        """Return the number of finished epochs."""
        # Training is logged during an epoch, validation after it.
        trained = (epoch - 1 for epoch in self.curve('loss'))
        return max([0, *trained, *self.curve(ACCURACY)])

    def latest_accuracy(self) -> str:
        """Return the latest accuracy as text."""
        accuracies = list(self.curve(ACCURACY).values())
        return percent(accuracies[-1]) if accuracies else ''


@dataclass(frozen=True)
class Ended:
    """End of a run: its exit code, and the peak memory of its process in MB."""

    code: int
    memory: float


def check_code(run: Run, ended: Ended) -> None:
    """Raise :class:`RunFailed` with the last line of output, unless the run succeeded."""
    if ended.code != 0:
        last = ''.join(run.output.read_text(errors='replace').splitlines()[-1:])
        raise RunFailed(f'{run.name} ended with code {ended.code}, see {run.output}: {last}')


def _end_with_parent() -> None:
    """Let the kernel send SIGTERM to this process when its parent is killed."""
    if sys.platform == 'linux':
        _C.prctl(_PR_SET_PDEATHSIG, signal.SIGTERM)


class _Process:
    """The process of a run."""

    def __init__(self, run: Run, environment: dict[str, str]) -> None:
        self.run = run
        self.environment = environment
        self._is_told = False
        run.prepare()
        with run.output.open('a') as file:
            self._process = subprocess.Popen(
                run.command(),
                stdout=file,
                stderr=subprocess.STDOUT,
                env=os.environ | environment,
                preexec_fn=_end_with_parent,
            )

    def ended(self) -> Ended | None:
        """Return how the run ended, or None while it is running."""
        # Unlike Popen.poll(), wait4 reports the memory. It can be called only once per process.
        pid, status, usage = os.wait4(self._process.pid, os.WNOHANG)
        if pid == 0:
            return None
        self._process.returncode = os.waitstatus_to_exitcode(status)
        return Ended(self._process.returncode, usage.ru_maxrss / 1024)

    def terminate(self) -> None:
        """Tell the process once to save a checkpoint and end."""
        if not self._is_told:
            self._is_told = True
            self._process.terminate()

    def wait(self) -> None:
        """Wait for the process."""
        self._process.wait()


@contextmanager
def delayed_interrupts() -> Iterator[None]:
    """Deliver SIGINT and SIGTERM after the ``with`` block, so that they do not interrupt it."""
    arrived: list[int] = []
    handlers = {
        number: signal.signal(number, lambda number, _: arrived.append(number))
        for number in (signal.SIGINT, signal.SIGTERM)
    }
    try:
        yield
    finally:
        for number, handler in handlers.items():
            signal.signal(number, handler)
    if arrived:
        signal.raise_signal(arrived[0])


@contextmanager
def exit_when_stopped(advice: str = '') -> Iterator[None]:
    """End the process with one line and code 130 if Ctrl-C or SIGTERM stops what is inside.

    SIGTERM ends a job on a cluster. Here it raises KeyboardInterrupt, so that the runs end, too.

    Args:
        advice: What to do next, for the line.
    """
    handler = signal.signal(signal.SIGTERM, signal.default_int_handler)
    try:
        yield
    except KeyboardInterrupt:
        print('; '.join(filter(None, ['stopped', advice])), file=sys.stderr)
        sys.exit(130)
    finally:
        signal.signal(signal.SIGTERM, handler)


class RunQueue:
    """Runs that wait to be started, in order. A run whose ``needs`` failed never starts.

    Args:
        runs: The runs.
        on_end: Called at the end of each run.
    """

    def __init__(self, runs: Sequence[Run], on_end: Callable[[Run, Ended], None]) -> None:
        self.runs = runs
        self._waiting = list(runs)
        self._succeeded: set[Run] = set()
        self._on_end = on_end

    def pop(self) -> Run | None:
        """Return the next run that can start, or None."""
        for run in self._waiting:
            if run.needs is None or run.needs in self._succeeded:
                self._waiting.remove(run)
                return run
        return None

    def may_grow(self) -> bool:
        """Return whether there may be runs later, although none can start and none is active."""
        return False

    def should_stop(self, run: Run) -> bool:
        """Return whether to stop an active run; called regularly."""
        return False

    def end(self, run: Run, ended: Ended) -> None:
        """Take note of the end of a run."""
        if ended.code == 0:
            self._succeeded.add(run)
        self._on_end(run, ended)


def train_all(queue: RunQueue, places: Sequence[dict[str, str]], console: Console) -> None:
    """Train the runs of a queue, several at a time, and show their progress.

    An exception of the queue or Ctrl-C ends the active runs, and so does SIGTERM if its handler
    raises an exception. If this process is killed, its runs save a checkpoint and end, too.

    Args:
        queue: The runs.
        places: The environment variables of each concurrent run, see :func:`places`.
        console: Shows a line at the end of each run and, on a terminal, progress bars.
    """
    free = list(places)
    working: list[_Process] = []
    try:
        with _Display(queue.runs, console) as display:
            while True:
                while free and (run := queue.pop()) is not None:
                    with delayed_interrupts():  # no process is started without being in the list
                        working.append(_Process(run, free.pop(0)))
                if not working and not queue.may_grow():
                    return
                time.sleep(PAUSE)
                for process in list(working):
                    ended = process.ended()
                    display.update(process.run)
                    if ended is None:
                        if queue.should_stop(process.run):
                            process.terminate()
                        continue
                    working.remove(process)
                    free.append(process.environment)
                    display.close(process.run, ended)
                    queue.end(process.run, ended)
    finally:
        with delayed_interrupts():
            for process in working:
                process.terminate()
            for process in working:
                process.wait()


def places(jobs: int | None = None) -> list[dict[str, str]]:
    """Return the environment variables of each concurrent run.

    Args:
        jobs: Number of concurrent runs. None: one per GPU or, without a GPU, one per core.
    """
    if torch.cuda.is_available():
        every = ','.join(map(str, range(torch.cuda.device_count())))
        visible = os.environ.get('CUDA_VISIBLE_DEVICES') or every
        devices = [{'CUDA_VISIBLE_DEVICES': device} for device in visible.split(',')]
    else:
        # More than one thread per run would only compete for the cores.
        devices = [{'OMP_NUM_THREADS': '1'}] * available_cores()
    return [devices[number % len(devices)] for number in range(jobs or len(devices))]


class _Display:
    """A bar for all runs and one per active run; a line for each that succeeded."""

    def __init__(self, runs: Sequence[Run], console: Console) -> None:
        self._console = console
        self._progress = Progress(
            TextColumn('{task.description}', markup=False),
            BarColumn(),
            MofNCompleteColumn(),
            TextColumn('epochs  {task.fields[accuracy]}'),
            TimeRemainingColumn(),
            console=console,
            disable=not console.is_terminal,
            speed_estimate_period=3600,  # an epoch may be long
        )
        self._done = {run: run.epochs_done() for run in runs}
        self._bars: dict[Run, TaskID] = {}
        self._total = self._progress.add_task(
            'all', total=sum(run.epochs for run in runs), accuracy='', visible=bool(runs)
        )

    def __enter__(self) -> _Display:
        self._progress.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._progress.stop()

    def update(self, run: Run) -> None:
        """Update the progress of a run."""
        if run not in self._bars:
            self._bars[run] = self._progress.add_task(run.name, total=run.epochs, accuracy='')
        self._done[run] = run.epochs_done()
        self._progress.update(
            self._bars[run], completed=self._done[run], accuracy=run.latest_accuracy()
        )
        self._progress.update(self._total, completed=sum(self._done.values()))

    def close(self, run: Run, ended: Ended) -> None:
        """Remove the bar of a run that has ended."""
        self._progress.remove_task(self._bars.pop(run))
        if ended.code == 0:
            self._console.print(
                f'{run.name}: {plural(run.epochs, "epoch")}, {run.latest_accuracy()}'
            )

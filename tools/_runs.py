"""Concurrent runs of train.py and their logs, for quickstart.py and benchmark.py."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from argparse import ArgumentTypeError
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

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

ROOT = Path(__file__).resolve().parents[1]
# Polling interval in seconds.
PAUSE = 0.5


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
        train = [sys.executable, str(ROOT / 'tools/train.py'), str(self.config)]
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
        return f'{accuracies[-1]:.1f} %' if accuracies else ''


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


class _Process:
    """The process of a run."""

    def __init__(self, run: Run, environment: dict[str, str]) -> None:
        self.run = run
        self.environment = environment
        run.prepare()
        with run.output.open('a') as file:
            self._process = subprocess.Popen(
                run.command(),
                stdout=file,
                stderr=subprocess.STDOUT,
                env=os.environ | environment,
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
        """Tell the process to save a checkpoint and end."""
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


def train_all(
    runs: Sequence[Run],
    places: Sequence[dict[str, str]],
    console: Console,
    on_end: Callable[[Run, Ended], None],
) -> None:
    """Train all runs, several at a time, and show their progress.

    A run whose ``needs`` failed never starts. An exception of ``on_end`` or Ctrl-C ends the active
    runs, and so does SIGTERM if its handler raises an exception.

    Args:
        runs: The runs, in the order in which they start.
        places: The environment variables of each concurrent run.
        console: Shows a line at the end of each run and, on a terminal, progress bars.
        on_end: Called at the end of each run.
    """
    waiting, free, well = list(runs), list(places), set()
    working: list[_Process] = []
    try:
        with _Display(runs, console) as display:
            while True:
                ready = [run for run in waiting if run.needs is None or run.needs in well]
                for run in ready[: len(free)]:
                    waiting.remove(run)
                    with delayed_interrupts():  # no process is started without being in the list
                        working.append(_Process(run, free.pop(0)))
                if not working:
                    return
                time.sleep(PAUSE)
                for process in list(working):
                    ended = process.ended()
                    display.update(process.run)
                    if ended is None:
                        continue
                    working.remove(process)
                    free.append(process.environment)
                    if ended.code == 0:
                        well.add(process.run)
                    display.close(process.run, ended)
                    on_end(process.run, ended)
    finally:
        with delayed_interrupts():
            for process in working:
                process.terminate()
            for process in working:
                process.wait()


class _Display:
    """A bar for all runs and one per active run; a line for each that succeeded."""

    def __init__(self, runs: Sequence[Run], console: Console) -> None:
        self._console = console
        self._progress = Progress(
            TextColumn('{task.description}'),
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
            'all',
            total=sum(run.epochs for run in runs),
            completed=sum(self._done.values()),
            accuracy='',
        )

    def __enter__(self) -> _Display:
        self._progress.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._progress.stop()

    def update(self, run: Run) -> None:
        """Update the progress of a run."""
        if run not in self._bars:
            self._bars[run] = self._progress.add_task(
                run.name, total=run.epochs, completed=self._done[run], accuracy=''
            )
        self._done[run] = run.epochs_done()
        self._progress.update(
            self._bars[run], completed=self._done[run], accuracy=run.latest_accuracy()
        )
        self._progress.update(self._total, completed=sum(self._done.values()))

    def close(self, run: Run, ended: Ended) -> None:
        """Remove the bar of a run that has ended."""
        self._progress.remove_task(self._bars.pop(run))
        if ended.code == 0:
            self._console.print(f'{run.name}: {run.epochs} epochs, {run.latest_accuracy()}')


def positive(text: str) -> int:
    """Parse a command-line argument that must be a positive integer."""
    if not text.isdecimal() or int(text) < 1:
        raise ArgumentTypeError(f'must be a positive integer, got {text!r}')
    return int(text)

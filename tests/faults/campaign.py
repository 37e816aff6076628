"""Inject random faults into a run, which must end like an undisturbed run."""

from __future__ import annotations

import os
import random
import signal
import subprocess
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

from faults.runs import assert_same, configure, finish, found, logs, run, start, wait_for_orphans

# Exit codes of a process that finished, was told to stop, lost another process, was killed by the
# campaign, or was signalled before it had a handler.
STOPPED = {0, 1, 130, 143, -signal.SIGKILL, -signal.SIGTERM, -signal.SIGINT}
FULL = 2
NO_SPACE = 'No space left on device'


@dataclass
class Campaign:
    """Faults of random kinds at random moments, until the run ends.

    Args:
        folder: An empty folder.
        seed: Seed of the random kinds and moments.
        processes: Number of processes of the run.
        epochs: Number of epochs; each has 5 iterations, or 3 with two processes.
        disk: Small file system for the checkpoints, or None.
        say: Called with a line for each fault.
    """

    folder: Path
    seed: int
    processes: int = 1
    epochs: int = 3
    disk: Path | None = None
    say: Callable[[str], None] = print
    faults: Counter = field(default_factory=Counter)

    def __post_init__(self) -> None:
        self.random = random.Random(self.seed)
        self.config = configure(self.folder / 'run', max_epochs=self.epochs)
        self.config['resume'] = True
        if self.disk:
            checkpoint = self.config['default_hooks']['checkpoint'] | dict(out_dir=str(self.disk))
            self.config['default_hooks'] = self.config['default_hooks'] | dict(
                checkpoint=checkpoint
            )
        self.checkpoints = (self.disk or self.folder) / 'run'

    def run(self, least: int) -> None:
        """Inject at least this many faults, then let the run end and compare the results.

        Raises:
            AssertionError: The result differs from that of an undisturbed run.
        """
        began = time.monotonic()
        wanted = run(self.config | dict(resume=False), self.folder / 'straight', self.processes)
        self.length = time.monotonic() - began
        self._clear()
        while sum(self.faults.values()) < least:
            kinds = [self.kill, self.stop]
            if self.disk:
                kinds.append(self.fill)
            if len(self._whole()) > 1:
                kinds += [self.truncate, self.flip]
            fault = self.random.choice(kinds)
            self.faults[fault.__name__] += 1
            detail = fault()
            self.say(f'{sum(self.faults.values()):3} {fault.__name__}: {detail}')
            if self._is_at_its_end():
                self._compare(wanted)
                self._clear()
        run(self.config, self.folder / 'run', self.processes)
        self._compare(wanted)

    def once(self, fault: str, wanted: list[dict], length: float) -> None:
        """Inject one fault, then let the run end and compare the results.

        Args:
            fault: Name of a method.
            wanted: Results of an undisturbed run.
            length: Its duration in seconds.

        Raises:
            AssertionError: The result differs from that of the undisturbed run.
        """
        self.length = length
        getattr(self, fault)()
        if not self._is_at_its_end():
            run(self.config, self.folder / 'run', self.processes)
        self._compare(wanted)

    def kill(self) -> str:
        """Kill one process with SIGKILL at a random moment."""
        return self._signal(signal.SIGKILL)

    def stop(self) -> str:
        """Send SIGTERM to one process at a random moment."""
        return self._signal(signal.SIGTERM)

    def interrupt(self) -> str:
        """Send SIGINT to one process at a random moment."""
        return self._signal(signal.SIGINT)

    def lose_launcher(self) -> str:
        """Kill the process that started all others at a random moment."""
        started = start(self.config, self.folder / 'run', self.processes, launched=True)
        delay = self.random.uniform(0, self.length)
        time.sleep(delay)
        started[0].kill()
        finish(started, self.folder / 'run')
        wait_for_orphans(self.folder / 'run', self.processes)
        return f'after {delay:.2f} s'

    def damage(self) -> str:
        """Kill one process, then damage the newest checkpoint if there is an earlier one."""
        detail = self.kill()
        if len(self._whole()) > 1:
            detail += '; ' + self.random.choice([self.truncate, self.flip])()
        return detail

    def truncate(self) -> str:
        """Truncate the newest checkpoint."""
        path = self._whole()[-1]
        size = self.random.randrange(path.stat().st_size)
        os.truncate(path, size)
        return f'{path.name} to {size} bytes'

    def flip(self) -> str:
        """Flip a bit of the newest checkpoint."""
        path = self._whole()[-1]
        content = bytearray(path.read_bytes())
        place = self.random.randrange(len(content))
        content[place] ^= 1 << self.random.randrange(8)
        path.write_bytes(content)
        return f'{path.name} at byte {place}'

    def fill(self) -> str:
        """Leave too little disk space for another checkpoint."""
        folder = self.folder / 'run'
        for path in folder.glob('log*.txt'):
            path.unlink()
        left = self.random.randrange(3 * _size(self._whole()) + 1)
        with _filled(self.disk, left):
            codes = finish(start(self.config, folder, self.processes), folder)
        full = NO_SPACE in logs(folder)
        assert set(codes) <= ({FULL} if full else {0}), logs(folder)
        return f'{left} bytes left, exit codes {codes}'

    def _signal(self, number: signal.Signals) -> str:
        started = start(self.config, self.folder / 'run', self.processes)
        delay = self.random.uniform(0, self.length)
        time.sleep(delay)
        rank = self.random.randrange(self.processes)
        if started[rank].is_alive():
            os.kill(started[rank].pid, number)
        codes = finish(started, self.folder / 'run')
        assert set(codes) <= STOPPED, logs(self.folder / 'run')
        return f'process {rank} after {delay:.2f} s, exit codes {codes}'

    def _whole(self) -> list[Path]:
        """Return the checkpoints that a run can resume from, the newest last."""
        paths = self.checkpoints.glob('[ei]*.pth')
        return sorted(paths, key=lambda path: path.stat().st_mtime)

    def _is_at_its_end(self) -> bool:
        results = (self.folder / 'run' / f'found{rank}.pt' for rank in range(self.processes))
        return (self.checkpoints / f'epoch_{self.epochs}.pth').exists() and all(
            path.exists() for path in results
        )

    def _compare(self, wanted: list[dict]) -> None:
        assert_same(found(self.folder / 'run', self.processes), wanted)
        self.say('    at its end, bit for bit')

    def _clear(self) -> None:
        for path in [*self.checkpoints.glob('*.pth'), self.folder / 'run' / 'last_checkpoint']:
            path.unlink(missing_ok=True)


def _size(paths: list[Path]) -> int:
    return max((path.stat().st_size for path in paths), default=1_000_000)


@contextmanager
def _filled(disk: Path, left: int) -> Iterator[None]:
    """Fill a file system until this many bytes are left."""
    filler = disk / 'filler'
    free = os.statvfs(disk).f_bavail * os.statvfs(disk).f_frsize
    with open(filler, 'wb') as file:
        os.posix_fallocate(file.fileno(), 0, max(free - left, 1))
    try:
        yield
    finally:
        filler.unlink()


@contextmanager
def small_disk(path: Path, kilobytes: int) -> Iterator[Path | None]:
    """Mount a file system of that size; yield None if that is not permitted."""
    path.mkdir()
    mount = ['mount', '-t', 'tmpfs', '-o', f'size={kilobytes}k', 'tmpfs', str(path)]
    if subprocess.run(mount, capture_output=True).returncode != 0:
        yield None
        return
    try:
        yield path
    finally:
        subprocess.run(['umount', str(path)], check=True)

"""Choose the checkpoint that a run continues from, and with it the identity of the run."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace
from itertools import groupby
from logging import Logger
from pathlib import Path
from typing import NamedTuple

from mldr_kd_mm.utils.checkpoint import last_checkpoint_name, load_checkpoint
from mldr_kd_mm.utils.errors import ConfigError, printable
from mldr_kd_mm.utils.run_identity import (
    Origin,
    RunIdentity,
    current_launches,
    new_id,
    was_restarted,
)


class StartingPoint(NamedTuple):
    """Where a run starts.

    Attributes:
        identity: Identity of the run.
        checkpoint: Path of the checkpoint that it continues from; None at the beginning.
        is_fork: Whether that checkpoint belongs to another run.
    """

    identity: RunIdentity
    checkpoint: str | None = None
    is_fork: bool = False


class RunDirectory:
    """The checkpoints of a run, found by listing its directories.

    The path in ``last_checkpoint`` only decides which of them is tried first. It may be damaged, or
    name another directory after the run was copied.

    Args:
        work_dir: The Runner's work directory.
        checkpoint_dir: The directory of the checkpoints, if it is another one.
        suffixes: Suffixes of the checkpoints.
        logger: The log, in which checkpoints that are ignored are named.
    """

    def __init__(
        self, work_dir: str, checkpoint_dir: str, suffixes: Iterable[str], logger: Logger
    ) -> None:
        self.work_dir = Path(work_dir)
        self.folders = {self.work_dir.resolve(), Path(checkpoint_dir).resolve()}
        self.suffixes = {*suffixes}
        self.logger = logger
        self.record = RunIdentity.read(work_dir)

    def find_start(
        self, fingerprint: str, resume: bool, load_from: str | None, log: str
    ) -> StartingPoint:
        """Choose the checkpoint to continue from.

        A run that its launcher has started again continues from its newest checkpoint. If it has
        none, it does what it was told in the first place.

        Args:
            fingerprint: Fingerprint of the config.
            resume: Whether to resume.
            load_from: The checkpoint to resume from; None for the newest of the run.
            log: Name of the folder of this part's logs.

        Raises:
            ConfigError: The checkpoint cannot be read, or the directory has only checkpoints of
                other runs.
        """
        start = None
        if resume or was_restarted(self.record):
            self._list()
        if was_restarted(self.record):
            start = self._newest_of(self.record)
        if start is None and resume:
            start = self._named(load_from) if load_from else self._newest()
        start = start or StartingPoint(RunIdentity(new_id(), fingerprint))
        identity = replace(
            start.identity,
            fingerprint=fingerprint,
            launches=current_launches(),
            logs=(*dict.fromkeys([*start.identity.logs, log]),),
        )
        return start._replace(identity=identity)

    def _list(self) -> None:
        """Read the origins of the checkpoints; the newest one comes first."""
        origins: dict[Path, Origin] = {}
        self.damaged = 0
        folders = [folder for folder in self.folders if folder.is_dir()]
        for path in (path for folder in folders for path in folder.iterdir()):
            is_checkpoint = path.suffix in self.suffixes and (path.is_file() or path.is_dir())
            # The best checkpoints have no optimizer state.
            if is_checkpoint and not path.name.startswith('best_'):
                try:
                    origin = Origin.read(path)
                except ConfigError as error:
                    self._skip(error)
                else:
                    if origin is not None:
                        origins[path] = origin
        last = last_checkpoint_name(self.work_dir)
        if last and not any(path.name == last for path in origins):
            self.logger.warning(f'last_checkpoint={last!r}: names no whole checkpoint; ignored')
        # The times of copied files are those of copying.
        order = {
            path: (path.name == last, *origin[1:], path.stat().st_mtime)
            for path, origin in origins.items()
        }
        self.origins = {path: origins[path] for path in sorted(order, key=order.get, reverse=True)}

    def _skip(self, error: ConfigError) -> None:
        self.damaged += 1
        self.logger.warning(f'{error}; trying the checkpoint before it')

    def _newest(self) -> StartingPoint | None:
        """Continue from the newest checkpoint of the directory's run; None if it is empty."""
        record = self.record or self._adopt(self.origins.values())
        start = self._newest_of(record) if record else None
        if start:
            return start
        others = self._describe_others(record)
        if self.damaged:
            problem = f'none of the {self.damaged} checkpoints of {self.work_dir} can be read'
            fix = 'remove them and last_checkpoint to start from the beginning'
        elif others:
            problem = f'{self.work_dir} has no checkpoint of its own run'
            fix = 'continue one of them with --resume CHECKPOINT'
        elif last_checkpoint_name(self.work_dir) is not None:
            problem = f'{self.work_dir} has a last_checkpoint, but no checkpoint'
            fix = 'remove it to start from the beginning'
        else:
            return None
        raise ConfigError('; '.join(filter(None, [f'resume: {problem}', others, fix])))

    def _newest_of(self, record: RunIdentity) -> StartingPoint | None:
        """Find the newest whole checkpoint of a run."""
        if others := self._describe_others(record):
            self.logger.warning(f'resume: ignored: {others}')
        for path in self._own(record):
            try:
                if path.is_file():
                    load_checkpoint(str(path), 'resume')
                return StartingPoint(record, str(path))
            except ConfigError as error:
                self._skip(error)
        return None

    def _own(self, record: RunIdentity) -> list[Path]:
        return [path for path, origin in self.origins.items() if record.owns(origin)]

    def _named(self, path: str) -> StartingPoint:
        """Continue from the checkpoint that the user has named."""
        origin = Origin.read(path)
        if origin is None:
            raise ConfigError(f'resume={path!r}: must be a checkpoint of a run, not only weights')
        record = self.record or self._adopt([origin])
        is_here = '://' not in path and Path(path).resolve().parent in self.folders
        if not is_here and self.origins:
            raise ConfigError(
                f'work_dir={str(self.work_dir)!r}: has checkpoints of another run: '
                f'{self._describe_others(None)}; choose another work directory'
            )
        if not (is_here and record.owns(origin)):
            identity = RunIdentity(new_id(), '', parent=origin.run or None)
            return StartingPoint(identity, path, is_fork=True)
        if [Path(path).resolve()] == [each.resolve() for each in self._own(record)[:1]]:
            return StartingPoint(record, path)
        # The later checkpoints of the run are no longer part of it.
        until = origin[1:]
        history = (*record.history, Origin(record.id, *until))
        identity = replace(
            record,
            id=new_id(),
            parent=origin.run or None,
            history=tuple(Origin(last.run, *min(last[1:], until)) for last in history),
        )
        return StartingPoint(identity, path)

    def _adopt(self, origins: Iterable[Origin]) -> RunIdentity | None:
        """Return the identity of a run whose directory has no record, from its checkpoints."""
        origins = list(origins)
        runs = {origin.run for origin in origins}
        if not runs:
            return None
        if len(runs) > 1:
            raise ConfigError(
                f'resume: {self.work_dir} has checkpoints of {len(runs)} runs: '
                f'{self._describe_others(None)}; choose one with --resume CHECKPOINT'
            )
        (run,) = runs
        logs = sorted(path.parent.name for path in self.work_dir.glob('*/vis_data'))
        if run:
            return RunIdentity(run, '', logs=(*logs,))
        # Saved before runs had an id.
        last = max(origin[1:] for origin in origins)
        return RunIdentity(new_id(), '', history=(Origin('', *last),), logs=(*logs,))

    def _describe_others(self, record: RunIdentity | None) -> str:
        """Name the checkpoints that do not belong to a run."""
        others = [
            (origin.run, path.name)
            for path, origin in self.origins.items()
            if record is None or not record.owns(origin)
        ]
        parts = []
        for run, group in groupby(sorted(others), lambda item: item[0]):
            names = [printable(name) for _, name in group]
            more = f' and {len(names) - 3} more' if len(names) > 3 else ''
            owner = f'of run {run[:8]}' if run else 'of a run without an id'
            parts.append(f'{", ".join(names[:3])}{more} {owner}')
        return ', '.join(parts)

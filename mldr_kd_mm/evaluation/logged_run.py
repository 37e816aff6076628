"""Logs, config and checkpoints in the work directory of a run."""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
from mmengine.config import Config
from mmengine.dataset import pseudo_collate
from mmengine.registry import init_default_scope
from torch import nn
from torch.utils.data import DataLoader, Subset

from mldr_kd_mm.models.builder import build_classifier
from mldr_kd_mm.models.distillers.distiller import Distiller
from mldr_kd_mm.models.distillers.weights import load_into
from mldr_kd_mm.models.weights import use_counted_loading
from mldr_kd_mm.registry import DATASETS, MODELS
from mldr_kd_mm.utils.checkpoint import last_checkpoint_name, load_checkpoint
from mldr_kd_mm.utils.errors import ConfigError, MissingFileError, describe, is_number, named
from mldr_kd_mm.utils.limits import MAX_LOG_BYTES, read_text
from mldr_kd_mm.utils.nested import as_list
from mldr_kd_mm.utils.run_identity import Origin, RunIdentity
from mldr_kd_mm.utils.safe_config import parse_config
from mldr_kd_mm.utils.stored_config import (
    check_types,
    default_scope,
    registered_names_only,
    without_weights,
)

ACCURACY = 'accuracy/top1'
"""Name under which the top-1 accuracy on the validation set is logged, in percent."""


def read_records(work_dir: Path) -> list[dict[str, Any]]:
    """Return all records that a run has logged so far, in order of time.

    Args:
        work_dir: The Runner's work directory.
    """
    # A resumed run has one log per part.
    logs = _list_logs(work_dir, 'scalars.json')
    return [
        record
        for log, state in ((log, log.stat()) for log in logs)
        for record in _read_log(log, state.st_size, state.st_mtime_ns)
    ]


def _list_logs(work_dir: Path, name: str) -> list[Path]:
    """Return a file of all parts of a run, in the order of their start."""
    found = {path.parents[1].name: path for path in work_dir.glob(f'*/vis_data/{name}')}
    record = RunIdentity.read(work_dir)
    # The folders are named after the local time, which may be set back. A part is recorded with its
    # first checkpoint; folders between those of the record are of other runs or of tests.
    recorded = record.logs if record else ()
    later = sorted(folder for folder in found if not recorded or folder > max(recorded))
    return [found[folder] for folder in (*recorded, *later) if folder in found]


@lru_cache
def _read_log(log: Path, size: int, modified: int) -> list[dict[str, Any]]:
    """Return the records of a log. It is read again only after it has changed."""
    try:
        lines = read_text(log, MAX_LOG_BYTES).splitlines(keepends=True)
        # The last line may be incomplete.
        records = [json.loads(line) for line in lines if line.endswith('\n')]
        for record in records:
            if not is_number(record['step'], int) or not is_number(record.get('epoch', 0), int):
                raise ValueError('a step or epoch is not a number')
    except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise ConfigError(f'{log}: must be the log of a run ({describe(error)})') from error
    return records


def curve(records: Sequence[dict[str, Any]], key: str) -> dict[int, float]:
    """Return the curve of a logged scalar, with the latest value of each epoch.

    Args:
        records: Records of a run, in order of time.
        key: Name of the scalar.

    Returns:
        Epoch -> value, or iteration -> value for a run that counts iterations.
    """
    values = {
        # Training is logged by iteration, validation by epoch.
        record.get('epoch', record['step']): record[key]
        for record in records
        if is_number(record.get(key))
    }
    return dict(sorted(values.items()))


def find_checkpoints(work_dir: Path) -> list[Path]:
    """Return the checkpoints in a work directory: from new to old, then the best.

    The newest is that in ``last_checkpoint``. The others are in the order of their numbers, as the
    times of copied files are those of copying.

    Args:
        work_dir: The Runner's work directory.
    """
    last = last_checkpoint_name(work_dir)
    return sorted(work_dir.glob('*.pth'), key=lambda path: _recency(path, last), reverse=True)


def owner_of(name: str) -> tuple[str, str]:
    """Return whose metric a name in ``teacher_metrics`` is, and the name of the metric.

    Args:
        name: ``accuracy/top1`` of the teacher or of several together, or
            ``teacher1/accuracy/top1``.
    """
    found = re.fullmatch(r'(teacher\d+)/(.+)', name)
    return (found[1], found[2]) if found else ('teacher', name)


@dataclass(eq=False)
class LoggedRun:
    """A run that has started to train.

    Args:
        name: Name of the run in figures.
        work_dir: The Runner's work directory.
        config: Config of the run; of its last part if it was resumed.
        records: Logged records, in order of time.
    """

    name: str
    work_dir: Path
    config: Config
    records: list[dict[str, Any]]

    @classmethod
    def read(cls, work_dir: Path, name: str) -> LoggedRun:
        """Read a work directory.

        Args:
            work_dir: The Runner's work directory.
            name: Name of the run in figures.

        Raises:
            ConfigError: No run has logged there, or its config cannot be read.
        """
        records = read_records(work_dir)
        configs = _list_logs(work_dir, 'config.py')
        if not records or not configs:
            raise ConfigError(
                f'{work_dir}: must be the work directory of a run; it has no '
                f'*/vis_data/{"config.py" if records else "scalars.json"}'
            )
        with named(str(configs[-1])):
            config = Config(parse_config(read_text(configs[-1]), str(configs[-1])))
        if not isinstance(config.get('model', {}), dict):
            raise ConfigError(f'{configs[-1]}: model: must be a dict')
        return cls(name, work_dir, config, records)

    def curve(self, key: str) -> dict[int, float]:
        """Return the curve of a logged scalar, see :func:`curve`."""
        return curve(self.records, key)

    def names(self, prefix: str = '') -> list[str]:
        """Return the names of logged scalars with this prefix, in order of their first value."""
        logged = dict.fromkeys(key for record in self.records for key in record)
        return [key for key in logged if key.startswith(prefix)]

    @property
    def has_teacher(self) -> bool:
        """Whether its model is a Distiller."""
        return 'teacher' in self.config.model

    @property
    def teachers(self) -> list[dict[str, Any]]:
        """Configs of the teachers; empty without one."""
        return as_list(self.config.model.get('teacher') or [])

    @property
    def student(self) -> dict[str, Any]:
        """Config of the trained model."""
        return self.config.model.student if self.has_teacher else self.config.model

    def checkpoint(self, name: str | None = None) -> dict[str, Any]:
        """Load a checkpoint of the run.

        Args:
            name: Name of a file in the work directory. None: the newest of the run, not the best.

        Returns:
            Content of the checkpoint.

        Raises:
            MissingFileError: There is no such checkpoint.
            ConfigError: The checkpoint cannot be read.
        """
        if name is not None:
            return load_checkpoint(str(self.work_dir / name))
        record = RunIdentity.read(self.work_dir)
        for path in find_checkpoints(self.work_dir):
            content = load_checkpoint(str(path))
            origin = Origin.of(content)
            if origin is not None and (record is None or record.owns(origin)):
                return content
        raise MissingFileError(f'{self.work_dir}: there is no checkpoint of this run')

    def build_student(self) -> nn.Module:
        """Build the student with random weights."""
        init_default_scope(default_scope(self.config))
        student = self._checked('model.student', without_weights(self.student))
        with registered_names_only():
            return build_classifier(student)

    def build_model(self, checkpoint: dict[str, Any]) -> nn.Module:
        """Build the run's model in evaluation mode and load the weights of a checkpoint.

        Args:
            checkpoint: Content of a checkpoint of the run, or of its exported student. A Distiller
                with the latter has no neck.

        Raises:
            MissingFileError: The teacher's checkpoint no longer exists.
            ConfigError: The model cannot be built, or the weights do not fit it.
        """
        init_default_scope(default_scope(self.config))
        use_counted_loading()  # for a teacher whose weights are named in its init_cfg
        with named('model'), registered_names_only():
            config = self.config.model.to_dict()
            preprocessor = self.config.get('data_preprocessor') or config.get('data_preprocessor')
            if self.has_teacher:
                config |= dict(student=without_weights(config['student']))
            else:
                config = without_weights(config)
            config = self._checked('model', config | dict(data_preprocessor=preprocessor))
            model = MODELS.build(config) if self.has_teacher else build_classifier(config)
            if isinstance(model, Distiller):
                model.teacher.init_weights()
        report = load_into(model, checkpoint, 'checkpoint: does not fit the config')
        report.log(f'checkpoint of {self.name}')
        if 'neck' in report.new:
            model.neck = None  # an exported student has none, and a random one shows nothing
        return model.eval()

    def validation_batches(self, samples: int) -> DataLoader:
        """Load samples that are evenly spaced over the validation set.

        Args:
            samples: Maximum number of samples.

        Returns:
            Loader of the batches. Its data set is a ``Subset`` of the run's.

        Raises:
            ConfigError: The run has no validation set, or its files are missing.
        """
        loader = self.config.get('val_dataloader')
        if not loader:
            raise ConfigError('val_dataloader: the run has no validation set')
        dataset = self.build_dataset('val_dataloader')
        with named('val_dataloader.dataset'):
            # Data sets are often sorted by class.
            chosen = np.linspace(0, len(dataset) - 1, min(samples, len(dataset))).round()
            return DataLoader(
                Subset(dataset, chosen.astype(int).tolist()),
                batch_size=loader.get('batch_size', 1),
                num_workers=loader.get('num_workers', 0),
                collate_fn=pseudo_collate,
            )

    def build_dataset(self, loader: str) -> Any:
        """Build the data set of a loader.

        Args:
            loader: Name of the loader's field, which the config has.

        Raises:
            ConfigError: The data set cannot be built, or its files are missing.
        """
        field = f'{loader}.dataset'
        init_default_scope(default_scope(self.config))
        with named(field), registered_names_only():
            return DATASETS.build(self._checked(field, self.config[loader].to_dict()['dataset']))

    def _checked(self, field: str, config: Any) -> Any:
        return check_types(config, field, self.config.get('custom_imports'))


def _recency(checkpoint: Path, last: str | None) -> tuple[bool, bool, int, float]:
    """Return a sort key: best checkpoints come first, then the others from old to new."""
    name, numbers = checkpoint.name, re.findall(r'\d+', checkpoint.stem)
    number = int(numbers[-1]) if numbers else 0
    return not name.startswith('best_'), name == last, number, checkpoint.stat().st_mtime

"""The runs of a report, grouped into series that differ only in the seed."""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from mldr_kd_mm.evaluation.efficiency import Efficiency
from mldr_kd_mm.evaluation.logged_run import ACCURACY, LoggedRun
from mldr_kd_mm.evaluation.observer import Observations
from mldr_kd_mm.utils.logging import plural
from mldr_kd_mm.utils.stored_config import without_fields

Curve = dict[int, float]


@dataclass
class Entry:
    """A run of the report.

    Attributes:
        run: The logged run.
        processes: Number of processes that trained it.
        parameters: Number of the student's parameters; None if the student cannot be built.
        seen: Outputs of its models; None if they or the data are missing.
        classes: Names of the classes.
        images: Number of images of the whole validation set.
        picture: Function that returns the validation image of a sample as a data URI.
        costs: Name of each model -> its cost.
        note: Reason for missing figures.
    """

    run: LoggedRun
    processes: int = 1
    parameters: int | None = None
    seen: Observations | None = None
    classes: Sequence[str] = ()
    images: int | None = None
    picture: Callable[[int], str] | None = None
    costs: dict[str, Efficiency] = field(default_factory=dict)
    note: str = ''

    def images_per_second(self) -> Curve:
        """Return the training throughput of all processes over the epochs."""
        batch = self.run.config.train_dataloader.get('batch_size') or 1
        trained = [record for record in self.run.records if 'loss' in record and 'time' in record]
        return {
            record.get('epoch', record['step']): batch * self.processes / record['time']
            for record in trained
        }


@dataclass
class Series:
    """Runs that differ only in the seed; one line in each figure.

    Attributes:
        name: Its name in figures.
        color: Its colour in figures.
        entries: The runs. Figures of predictions show the first.
    """

    name: str
    color: str
    entries: Sequence[Entry]

    @property
    def first(self) -> Entry:
        """The first run."""
        return self.entries[0]

    @property
    def run(self) -> LoggedRun:
        """The log of the first run."""
        return self.first.run

    @property
    def seen(self) -> Observations | None:
        """Outputs of the models of the first run."""
        return self.first.seen

    @property
    def classes(self) -> Sequence[str]:
        """Names of the classes."""
        return self.first.classes

    def curve(self, key: str) -> Curve:
        """Return the mean curve of a logged scalar."""
        return _mean(self._curves(key))

    def band(self, key: str) -> tuple[Curve, Curve] | None:
        """Return the curves one standard deviation around the mean; None for one run."""
        if len(self.entries) < 2:
            return None
        curves = self._curves(key)
        mean = _mean(curves)
        std = {x: float(np.std([curve[x] for curve in curves], ddof=1)) for x in mean}
        return tuple({x: y + side * std[x] for x, y in mean.items()} for side in (-1, 1))

    def images_per_second(self) -> Curve:
        """Return the mean training throughput over the epochs."""
        return _mean([entry.images_per_second() for entry in self.entries])

    def last_accuracies(self) -> list[float]:
        """Return each run's accuracy after its last epoch, in percent; empty if one has none."""
        curves = self._curves(ACCURACY)
        return [[*curve.values()][-1] for curve in curves] if all(curves) else []

    def last_epochs(self) -> set[float]:
        """Return the last epochs after which the runs measured their accuracy."""
        return {max(curve) for curve in self._curves(ACCURACY) if curve}

    def teacher_accuracy(self) -> float | None:
        """Return the teacher's accuracy in percent; None if it was not measured."""
        values = [*self.curve(f'teacher/{ACCURACY}').values()]
        return values[-1] if values else None

    def _curves(self, key: str) -> list[Curve]:
        return [entry.run.curve(key) for entry in self.entries]


def group_runs(entries: Sequence[Entry], color_of: Callable[[int], str]) -> list[Series]:
    """Group runs that differ only in the seed.

    Args:
        entries: The runs.
        color_of: Number of a series -> its colour.

    Returns:
        The series, in the order of their first runs.
    """
    groups: dict[str, list[Entry]] = {}
    for entry in entries:
        key = _settings(entry.run)
        seeds = [_seed(other.run) for other in groups.get(key, ())]
        if _seed(entry.run) in seeds:  # a copy, or a repetition
            key = f'{key} {entry.run.name}'
        groups.setdefault(key, []).append(entry)
    names = [_name(group) for group in groups.values()]
    return [
        Series(
            name if names.count(name) == 1 else group[0].run.name, color_of(number), tuple(group)
        )
        for number, (name, group) in enumerate(zip(names, groups.values(), strict=True))
    ]


def data_set(run: LoggedRun) -> str:
    """Return a description of the validation images of a run, equal for equal images."""
    loader = run.config.get('val_dataloader') or {}
    dataset = loader.get('dataset') or {}
    facts = without_fields(dict(dataset), ('pipeline',))
    kind = str(getattr(facts.pop('type', None), '__name__', None) or dataset.get('type'))
    parts = [f'{name}={value}' for name, value in sorted(facts.items()) if _is_telling(value)]
    return f'{kind.rpartition(".")[2]}({", ".join(parts)})'


def alone(series: Series, others: Sequence[Series]) -> Series | None:
    """Return the series of the same student without a teacher, validated on the same images.

    Of several, that whose recipe differs least.

    Args:
        series: The distilled student.
        others: All series of the report.
    """
    candidates = [
        other
        for other in others
        if not other.run.has_teacher
        and _architecture(other.run) == _architecture(series.run)
        and data_set(other.run) == data_set(series.run)
    ]
    return min(
        candidates,
        key=lambda o: (len(other_fields(series, o)), _seed(o.run) != _seed(series.run)),
        default=None,
    )


def other_fields(series: Series, other: Series) -> list[str]:
    """Return the fields of the config in which the recipes of two series differ."""
    both = [_recipe(each.run) for each in (series, other)]
    return [name for name, value in both[0].items() if value != both[1][name]]


def _recipe(run: LoggedRun) -> dict[str, Any]:
    config = run.config.to_dict()
    recipe = {name: config.get(name) for name in ('train_cfg', 'optim_wrapper', 'param_scheduler')}
    loader = config.get('train_dataloader') or {}
    # The sampler may follow from a cache of the teacher's outputs.
    return recipe | {
        f'train_dataloader.{name}': loader.get(name) for name in ('dataset', 'batch_size')
    }


def _settings(run: LoggedRun) -> str:
    fields = ('model', 'load_from', 'train_cfg', 'optim_wrapper', 'param_scheduler', 'custom_hooks')
    loaders = ('train_dataloader', 'val_dataloader')
    config = run.config.to_dict()
    kept = {name: config.get(name) for name in (*fields, *loaders)}
    return json.dumps(kept, sort_keys=True, default=str)


def _seed(run: LoggedRun) -> Any:
    return (run.config.get('randomness') or {}).get('seed')


def _name(group: Sequence[Entry]) -> str:
    names = [entry.run.name for entry in group]
    if len(names) == 1:
        return names[0]
    shared = os.path.commonprefix(names).rstrip('0123456789')
    shared = shared.removesuffix('seed').rstrip('/_-. ') or names[0]
    return f'{shared} ({plural(len(names), "seed")})'


def _architecture(run: LoggedRun) -> dict[str, Any]:
    return {key: value for key, value in run.student.items() if key != 'data_preprocessor'}


def _is_telling(value: Any) -> bool:
    return isinstance(value, (str, int, float, dict, list, tuple)) and value not in ('', [], ())


def _mean(curves: Sequence[Curve]) -> Curve:
    shared = set.intersection(*(set(curve) for curve in curves))
    return {x: float(np.mean([curve[x] for curve in curves])) for x in sorted(shared)}

"""Facts about a run that its checkpoint records besides the weights."""

from __future__ import annotations

import html
import re
from collections.abc import Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from mmengine.logging import HistoryBuffer

from mldr_kd_mm.evaluation.logged_run import ACCURACY, curve, read_records
from mldr_kd_mm.utils.checkpoint import class_names
from mldr_kd_mm.utils.errors import ConfigError, is_number
from mldr_kd_mm.utils.nested import as_list
from mldr_kd_mm.utils.run_identity import Origin, RunIdentity
from mldr_kd_mm.utils.safe_config import parse_config


@dataclass(frozen=True)
class RunRecord:
    """The facts that a checkpoint of mmengine's Runner records, read once.

    The file is untrusted: a fact that is missing or malformed is None or empty, and texts are made
    printable, apart from the names of classes, which must stay those of the folders.

    Attributes:
        config: Text of the run's config.
        classes: Names of the classes, as stored in the file.
        dataset_meta: The training set's METAINFO, as stored in the file.
        experiment: Name of the experiment.
        epoch: Epochs trained.
        iteration: Iterations trained.
        seed: Random seed.
        time: When the checkpoint was saved.
        mmengine: mmengine's version.
        torch: PyTorch's version.
        commit: Git commit of the directory that the run was started in.
        batch_size: Images per batch and process.
        processes: Number of processes.
        has_ema: Whether the weights are the exponential moving average.
        metrics: Validation metric -> one value per validation.
        teacher_metrics: The same metrics of the teacher, measured before training.
        validated_epoch: Epoch of the last validation.
        best_checkpoint: File name of the run's best checkpoint.
        best_score: Its metric.
    """

    config: str | None = None
    classes: tuple[str, ...] = ()
    dataset_meta: Mapping[str, Any] = field(default_factory=dict)
    experiment: str | None = None
    epoch: str | None = None
    iteration: str | None = None
    seed: str | None = None
    time: str | None = None
    mmengine: str | None = None
    torch: str | None = None
    commit: str | None = None
    batch_size: str | None = None
    processes: str | None = None
    has_ema: bool = False
    metrics: Mapping[str, list[float]] = field(default_factory=dict)
    teacher_metrics: Mapping[str, float] = field(default_factory=dict)
    validated_epoch: str | None = None
    best_checkpoint: str | None = None
    best_score: str | None = None

    @classmethod
    def from_checkpoint(cls, content: Mapping[str, Any]) -> RunRecord:
        """Read the facts from a checkpoint.

        Args:
            content: Content of the checkpoint, as
                :func:`~mldr_kd_mm.utils.checkpoint.load_checkpoint` returns it.
        """
        meta, steps = mapping(content, 'meta'), mapping(content, 'meta', 'steps')
        hub, info = mapping(content, 'message_hub'), mapping(content, 'message_hub', 'runtime_info')
        text = meta.get('cfg')
        version, commit = _split_version(plain(meta.get('mmengine_version')) or '')
        best, best_score = info.get('best_ckpt'), info.get('best_score')
        teacher = mapping(info, 'teacher_metrics').items()
        return cls(
            config=text if isinstance(text, str) else None,
            classes=class_names(dict(meta=meta)),
            dataset_meta=mapping(meta, 'dataset_meta'),
            experiment=plain(meta.get('experiment_name')),
            epoch=plain(meta.get('epoch')),
            iteration=plain(meta.get('iter')),
            seed=plain(meta.get('seed')),
            time=plain(meta.get('time')),
            mmengine=version,
            torch=plain(meta.get('torch')),
            commit=commit,
            batch_size=plain(steps.get('batch_size')),
            processes=plain(steps.get('processes')),
            has_ema='ema_state_dict' in content,
            metrics=dict(_metrics(hub)),
            teacher_metrics={plain(name): value for name, value in teacher if is_number(value)},
            validated_epoch=plain(info.get('last_validated_epoch')),
            best_checkpoint=plain(Path(best).name) if isinstance(best, str) and best else None,
            best_score=f'{best_score:.2f}' if is_number(best_score) else plain(best_score),
        )

    @classmethod
    def read(cls, content: Mapping[str, Any], path: str | Path) -> RunRecord:
        """Read the facts from a checkpoint and from the log beside it.

        mmengine validates an epoch after it has saved the epoch's checkpoint, so only the log has
        the accuracy of these very weights.

        Args:
            content: Content of the checkpoint.
            path: Path of the checkpoint. The log of another run is not read.
        """
        record, origin = cls.from_checkpoint(content), Origin.of(content)
        identity = RunIdentity.read(Path(path).parent)
        if record.validated_epoch == record.epoch or origin is None or identity is None:
            return record
        with suppress(ConfigError):  # the config or the log cannot be read
            by_epoch = 'max_iters' not in mapping(parse_config(record.config or ''), 'train_cfg')
            if by_epoch and identity.owns(origin):
                return record._with_validation(read_records(Path(path).parent), origin.epoch)
        return record

    def _with_validation(self, records: list[dict[str, Any]], epoch: int) -> RunRecord:
        """Add the validation of an epoch, if it has been logged."""
        logged = {name: curve(records, name).get(epoch) for name in self.metrics or (ACCURACY,)}
        if None in logged.values():
            return self
        metrics = {name: [*self.metrics.get(name, []), value] for name, value in logged.items()}
        return replace(self, metrics=metrics, validated_epoch=str(epoch))


def mapping(content: Any, *keys: str) -> Mapping[str, Any]:
    """Return the dict under these keys of nested dicts, or an empty one.

    Args:
        content: The outermost dict.
        *keys: The keys, from the outside in.
    """
    for key in keys:
        content = content.get(key) if isinstance(content, Mapping) else None
    return content if isinstance(content, Mapping) else {}


def dataset_of(run: Mapping[str, Any], loader: str) -> Mapping[str, Any]:
    """Return the config of the data set of a loader, without wrappers such as RepeatDataset.

    Of a MixedDataset it is the labelled part. Without a validation set, that of ``val_dataloader``
    has just the ``pipeline`` for images in use, if the run's config has a ``test_pipeline``.

    Args:
        run: The run's config.
        loader: Name of the loader's field.
    """
    dataset = mapping(run, loader, 'dataset')
    # A run without labelled images has no validation set.
    if not dataset and loader == 'val_dataloader' and run.get('test_pipeline'):
        return dict(pipeline=run['test_pipeline'])
    return _unwrapped(dataset)


def validation_part(run: Mapping[str, Any]) -> Mapping[str, Any]:
    """Return the config of the validation set or, if it joins several, of the first of them.

    Args:
        run: The run's config.

    Raises:
        ConfigError: The parts prepare their images in different ways.
    """
    dataset = dataset_of(run, 'val_dataloader')
    parts = [_unwrapped(part) for part in dicts(dataset.get('datasets'))] or [dataset]
    if any(part.get('pipeline') != parts[0].get('pipeline') for part in parts):
        raise ConfigError(
            'val_dataloader.dataset.datasets: must have the same pipeline, by which the student '
            'prepares its images'
        )
    return parts[0]


def _unwrapped(dataset: Mapping[str, Any]) -> Mapping[str, Any]:
    while inner := mapping(dataset, 'dataset') or mapping(dataset, 'labeled'):
        dataset = inner
    return dataset


def metric_name(run: Mapping[str, Any], name: str) -> str:
    """Return the name of a validation metric, with ``kNN`` if neighbours predict the classes.

    Args:
        run: The run's config.
        name: The name in the log.
    """
    return f'kNN {name}' if type_name(mapping(run, 'val_cfg')) == 'KNNLoop' else name


def dicts(value: Any) -> list[Mapping[str, Any]]:
    """Return the configs of a list, or a single config as a list.

    Args:
        value: A part of a stored config.
    """
    return [config for config in as_list(value) if isinstance(config, Mapping)]


def type_name(config: Any) -> str:
    """Return a config's type without its scope.

    Args:
        config: A part of a stored config.
    """
    kind = config.get('type', '') if isinstance(config, Mapping) else ''
    return str(getattr(kind, '__name__', kind)).rpartition('.')[2]


def plain(value: Any) -> str | None:
    """Return an untrusted value as text that cannot end a line or a Markdown code span.

    Args:
        value: The value; None stays None.
    """
    if value is None:
        return None
    return ''.join(filter(str.isprintable, str(value))).replace('`', "'")


def escaped(value: Any) -> str:
    """Return an untrusted value as plain text in Markdown: no HTML, no link, no image.

    Args:
        value: The value.
    """
    text = html.escape(plain(value) or '', quote=False).replace('\\', '\\\\')
    return text.replace('[', '\\[').replace(']', '\\]')


def _split_version(recorded: str) -> tuple[str | None, str | None]:
    """Split mmengine's version from the commit that mmengine appends to it."""
    version, commit = re.fullmatch('(.*?)([0-9a-f]{40}|unknown|)', recorded).groups()
    return version or None, commit if commit not in ('', 'unknown') else None


def _metrics(hub: Mapping[str, Any]) -> Iterator[tuple[str, list[float]]]:
    for name, buffer in mapping(hub, 'log_scalars').items():
        metric = str(name).removeprefix('val/')
        is_metric = metric != name and metric not in ('data_time', 'time')
        if is_metric and isinstance(buffer, HistoryBuffer) and len(buffer.data[0]):
            yield plain(metric), buffer.data[0].tolist()

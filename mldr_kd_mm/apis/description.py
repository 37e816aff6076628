"""Description of a student, which all of its exported files contain."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, fields, replace
from typing import Any

from mldr_kd_mm.apis.run_record import RunRecord, dicts, validation_part
from mldr_kd_mm.apis.student import RebuiltStudent
from mldr_kd_mm.models.data_preprocessor import Statistics, are_valid
from mldr_kd_mm.utils.errors import ConfigError, are_sizes, is_number
from mldr_kd_mm.utils.stored_config import default_scope


@dataclass(frozen=True)
class StudentDescription:
    """What a student needs besides its weights: architecture, images and classes.

    It is stored as JSON texts, one for each attribute: in a ``.pth`` file as ``meta['student']``,
    in the metadata of a ``.safetensors`` file, the ``metadata_props`` of an ONNX file and the extra
    file ``metadata.json`` of a ``.pt2`` file. A folder has it in its file of weights.

    Attributes:
        model: Config of the classifier.
        default_scope: The registry scope of that config.
        input_size: (3, H, W) of the images that the network gets, in pixels.
        channel_order: RGB or BGR; None if the run's config does not state it.
        mean: Mean of each channel, of pixel values from 0 to 255.
        std: Standard deviation of each channel.
        pipeline: Steps of the validation that read and resize an image.
        resize: The same as ``scale`` (H, W) before the crop, ``crop_mode``, ``crop_pct``,
            ``interpolation`` and ``backend``, see
            :class:`~mldr_kd_mm.apis.preprocessing.Preprocessing`; None if the pipeline has
            other steps.
        classes: Names of the classes; None if unknown.
        input: ``'normalised'``: float32 (N, 3, H, W), ``(pixel - mean) / std``; or ``'uint8'``:
            RGB images (N, height, width, 3) of any size, which the graph prepares itself.
        output: ``'logits'`` or ``'probabilities'``, (N, classes), or ``'feature'``, (N, width), of
            a student without a head.
    """

    model: dict[str, Any]
    default_scope: str
    input_size: tuple[int, ...]
    channel_order: str | None
    mean: list[float]
    std: list[float]
    pipeline: list[dict[str, Any]]
    resize: dict[str, Any] | None
    classes: list[str] | None
    input: str = 'normalised'
    output: str = 'logits'

    @classmethod
    def of(
        cls, record: RunRecord, run: Mapping[str, Any], student: RebuiltStudent
    ) -> StudentDescription:
        """Describe the student of a run.

        Args:
            record: Facts of the run.
            run: The run's config.
            student: The student.
        """
        preprocessing = student.preprocessing
        return cls(
            model=student.config,
            default_scope=default_scope(run),
            input_size=student.input_size,
            channel_order=preprocessing.channel_order,
            mean=preprocessing.mean,
            std=preprocessing.std,
            pipeline=dicts(validation_part(run).get('pipeline')),
            resize=preprocessing.resize,
            classes=(list(record.classes) or None) if student.num_classes else None,
            output=student.output,
        )

    def to_metadata(self) -> dict[str, str]:
        """Return the JSON text of each attribute by its name."""
        return {
            field.name: json.dumps(getattr(self, field.name), default=_to_json)
            for field in fields(self)
        }

    @classmethod
    def from_metadata(cls, texts: Any, label: str) -> StudentDescription:
        """Read the description from the metadata of an untrusted file.

        Args:
            texts: The metadata, which may have other entries.
            label: What to call the file in errors.

        Raises:
            ConfigError: There is no description, or it is damaged.
        """
        names = [field.name for field in fields(cls)]
        if not isinstance(texts, Mapping) or not set(names) <= set(texts):
            raise ConfigError(
                f'{label}: does not describe its images and classes; export it again: '
                'mldr-kd export CHECKPOINT OUT'
            )
        try:
            description = cls(**{name: json.loads(texts[name]) for name in names})
        except (TypeError, ValueError, RecursionError):
            description = None
        if description is None or not description._is_valid():
            raise ConfigError(f'{label}: its description is damaged; export it again')
        # JSON has no tuples, but mmcv's transforms take no lists as sizes.
        return replace(description, pipeline=[_with_tuples(step) for step in description.pipeline])

    def class_names(self, count: int) -> list[str]:
        """Return a name for each of ``count`` classes, its number if it has none."""
        names = [str(name) for name in self.classes or ()][:count]
        return [*names, *map(str, range(len(names), count))]

    def _is_valid(self) -> bool:
        return (
            isinstance(self.model, dict)
            and isinstance(self.default_scope, str)
            and are_sizes(self.input_size, 3)
            and self.channel_order in ('RGB', 'BGR', None)
            and are_valid(Statistics(self.mean, self.std, ''))
            and isinstance(self.pipeline, list)
            and all(isinstance(step, dict) for step in self.pipeline)
            and isinstance(self.classes, (list, type(None)))
            and self.input in ('normalised', 'uint8')
            and self.output in ('logits', 'probabilities', 'feature')
        )


def _with_tuples(step: Mapping[str, Any]) -> dict[str, Any]:
    """Return a step of a pipeline with lists of numbers as tuples."""
    return {
        name: tuple(value) if isinstance(value, list) and all(map(is_number, value)) else value
        for name, value in step.items()
    }


def _to_json(value: Any) -> str:
    """Return the text of a value that JSON has no type for, such as the class in a lazy config."""
    return f'{value.__module__}.{value.__qualname__}' if isinstance(value, type) else str(value)

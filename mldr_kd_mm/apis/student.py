"""A student, rebuilt from the config of its run or of its exported files."""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import torch
from mmengine.registry import DefaultScope
from torch import Tensor, nn

from mldr_kd_mm.apis.configs import read_config
from mldr_kd_mm.apis.preprocessing import Preprocessing, image_size
from mldr_kd_mm.apis.run_record import RunRecord, dataset_of, mapping, type_name, validation_part
from mldr_kd_mm.models.builder import build_classifier
from mldr_kd_mm.models.taps.stages import fixed_size, has_head
from mldr_kd_mm.models.taps.tapped_model import output_of
from mldr_kd_mm.models.weights import fill
from mldr_kd_mm.utils.errors import ConfigError, check_sizes, named
from mldr_kd_mm.utils.safe_config import parse_config
from mldr_kd_mm.utils.stored_config import (
    check_types,
    default_scope,
    registered_names_only,
    without_fields,
    without_weights,
)

# Arguments of a TimmClassifier that are not timm's, or that name other weights.
_NOT_TIMMS = (
    'type',
    'model_name',
    'loss',
    'with_cp',
    'data_preprocessor',
    'pretrained_cfg',
    'pretrained_cfg_overlay',
)
_FOR_TRAINING = ('batch_augments', 'train_cfg')


class RebuiltStudent(NamedTuple):
    """A student, rebuilt from the config of its run.

    Attributes:
        model: The classifier with its weights, in evaluation mode.
        config: Its config, without the fields that only training uses.
        input_size: (3, H, W) of its images.
        num_classes: Number of logits; 0 without a head.
        preprocessing: Preprocessing of its images.
        width: Number of its logits, or of the channels of its feature without a head.
    """

    model: nn.Module
    config: dict[str, Any]
    input_size: tuple[int, ...]
    num_classes: int
    preprocessing: Preprocessing
    width: int = 0

    @property
    def output(self) -> str:
        """Name of its output: ``'logits'``, or ``'feature'`` without a head."""
        return 'logits' if self.num_classes else 'feature'

    @property
    def is_timm(self) -> bool:
        """Whether timm builds it."""
        return type_name(self.config) == 'TimmClassifier'

    @property
    def is_built(self) -> bool:
        """Whether code other than timm's or mmpretrain's builds it."""
        return type_name(self.config) in ('BuiltClassifier', 'ModuleClassifier')

    @property
    def timm_arguments(self) -> dict[str, Any]:
        """The arguments of ``timm.create_model`` besides the name."""
        # Some models of timm accept any argument, and a name that is none would be code in a card.
        return {
            name: value
            for name, value in self.config.items()
            if name.isidentifier() and name not in _NOT_TIMMS and value is not None
        }


def rebuild_student(run: Mapping[str, Any], weights: dict[str, Tensor]) -> RebuiltStudent:
    """Build the student that a run's config describes, and load its weights.

    Args:
        run: The run's config.
        weights: The student's weights, complete.

    Returns:
        The student.

    Raises:
        ConfigError: The config has no student, its ``type`` is not registered, or the weights do
            not fit it.
    """
    model = mapping(run, 'model')
    config = _inference_config(mapping(model, 'student'))
    if not config:
        raise ConfigError('model.student: the config has no student')
    shared = mapping(model, 'data_preprocessor') or mapping(run, 'data_preprocessor')
    own = mapping(config, 'data_preprocessor')
    config['data_preprocessor'] = _inference_config({**shared, **own})
    config = check_types(config, 'model.student', run.get('custom_imports'))
    classifier = build_student(config, weights, default_scope(run))
    with named('model.student'), registered_names_only():
        size = _input_size(run, model.get('input_size') or fixed_size(classifier))
        check_sizes(3, input_size=size)
        with torch.no_grad():
            width = output_of(classifier, torch.zeros(1, *size)).shape[1]
    num_classes = width if has_head(classifier) else 0
    preprocessing = Preprocessing.of(run, classifier, size)
    return RebuiltStudent(classifier, config, tuple(size), num_classes, preprocessing, width)


def _input_size(run: Mapping[str, Any], known: Sequence[int] | None) -> tuple[int, ...]:
    """Return (3, H, W) of the student's images; a CNN's ``input_size`` may be left out."""
    of_training = dataset_of(run, 'train_dataloader')
    sizes = (image_size(validation_part(run)), known, image_size(of_training), (224, 224))
    return (3, *next(size for size in sizes if size is not None)[-2:])


def build_student(config: dict[str, Any], weights: dict[str, Tensor], scope: str) -> nn.Module:
    """Build a classifier and load all of its weights.

    Args:
        config: Its config, checked by :func:`~mldr_kd_mm.utils.stored_config.check_types`.
        weights: Its weights, complete.
        scope: The default scope of the config.

    Returns:
        The classifier, in evaluation mode.

    Raises:
        ConfigError: It cannot be built, or the weights do not fit it.
    """
    with (
        DefaultScope.overwrite_default_scope(scope),
        named('model.student'),
        registered_names_only(),
    ):
        classifier = build_classifier(copy.deepcopy(config)).eval()  # some models modify configs
        report, mistake = fill(classifier, weights)
        if mistake or report.unexpected:
            raise ConfigError(f'model.student: the weights do not fit it: {mistake or report}')
    return classifier


def read_run_config(record: RunRecord, path: str | None = None) -> dict[str, Any]:
    """Return the config of a run.

    Args:
        record: Facts of the run.
        path: Path of a config to execute instead of parsing the one in the checkpoint.

    Raises:
        ConfigError: There is no config, or it cannot be read.
    """
    if path is not None:
        return read_config(path).to_dict()
    if record.config is None:
        raise ConfigError(
            "checkpoint: meta['cfg'] is missing; give mldr-kd export the run's config as --config"
        )
    return parse_config(record.config)


def _inference_config(config: Any) -> Any:
    """Copy a config without the fields that only training uses."""
    return without_fields(without_weights(config), _FOR_TRAINING)

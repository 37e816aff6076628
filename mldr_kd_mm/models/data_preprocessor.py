"""Preprocess batches: mixup and CutMix, and the normalisation that each model needs."""

from __future__ import annotations

import json
import logging
import math
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from mmengine.config import Config
from mmengine.logging import print_log
from mmpretrain.models import ClsDataPreprocessor, CutMix, Mixup
from mmpretrain.structures import DataSample, batch_label_to_onehot
from torch import Tensor, nn

from mldr_kd_mm.models.backbones import hugging_face
from mldr_kd_mm.registry import BATCH_AUGMENTS, MODELS
from mldr_kd_mm.structures.label import split_by_label
from mldr_kd_mm.structures.view import View, get_views, hash_views
from mldr_kd_mm.utils.checkpoint import load_checkpoint, read_description
from mldr_kd_mm.utils.device import to_device
from mldr_kd_mm.utils.errors import ConfigError, is_number
from mldr_kd_mm.utils.random import preserve_global_rng, seed_global_rng
from mldr_kd_mm.utils.safe_config import parse_config

# How OpenMMLab ends the names of its weights, with a part of their hash.
_OF_OPENMMLAB = re.compile(r'_\d{8}-[0-9a-f]{8}\.pth')
_IMAGENET_CLASSES = 1000  # timm's default for num_classes


# The second name replaces mmpretrain's preprocessor in runs with our default scope.
@MODELS.register_module(name=['ViewDataPreprocessor', 'ClsDataPreprocessor'])
class ViewDataPreprocessor(ClsDataPreprocessor):
    """mmpretrain's ClsDataPreprocessor with reproducible mixup and CutMix, fast on a GPU.

    The host does not wait for a GPU: it copies images and labels from page-locked memory, the
    labels of a batch as one tensor.

    If a :class:`~mldr_kd_mm.datasets.ViewSampler` drew the batch, mixup and CutMix are a function
    of (seed, epoch, indices of the batch) and leave the global random state unchanged. Otherwise
    it behaves like mmpretrain's. Under the default scope ``mldr_kd_mm`` it is also registered as
    ``ClsDataPreprocessor``.

    Images without a label (:class:`~mldr_kd_mm.datasets.UnlabeledFolder`) are mixed only with each
    other, and labelled ones only with labelled ones, because a mixture of both has no label.
    """

    def forward(self, data: dict, training: bool = False) -> dict:
        """Return ``inputs`` (B, 3, H, W) and ``data_samples``, as mmpretrain's does."""
        if self.batch_augments is not None:
            # mmpretrain only mixes one-hot labels, and makes none for augments that are set later.
            self.to_onehot = True
        samples = data.get('data_samples')
        if not samples or not isinstance(samples[0], DataSample):
            return super().forward(data, training)
        inputs = super().forward(dict(inputs=data['inputs']))['inputs']
        rows, _ = split_by_label(samples)
        labelled = [samples[row] for row in rows]
        scores = self._move_labels(labelled) if labelled else None
        if training and self.batch_augments is not None and (scores is not None or not labelled):
            inputs, scores = self._augment(inputs, scores, samples)
        if scores is not None:
            for sample, score in zip(labelled, scores, strict=True):
                sample.set_gt_score(score)
        return dict(inputs=inputs, data_samples=samples)

    def cast_data(self, data: Any) -> Any:
        """Copy a batch, or a part of it, to the device."""
        return to_device(data, self.device) if isinstance(data, Tensor) else super().cast_data(data)

    def _move_labels(self, samples: Sequence[DataSample]) -> Tensor | None:
        """Move the labels of a batch to the device; return their scores (B, C), if any."""
        labels = sizes = None
        if 'gt_label' in samples[0]:
            sizes = [len(sample.gt_label) for sample in samples]
            labels = to_device(torch.cat([sample.gt_label for sample in samples]), self.device)
            for sample, label in zip(samples, labels.split(sizes), strict=True):
                sample.set_gt_label(label)
        if 'gt_score' in samples[0]:
            return to_device(torch.stack([sample.gt_score for sample in samples]), self.device)
        if not self.to_onehot or labels is None:
            return None
        num_classes = self.num_classes or samples[0].get('num_classes')
        if num_classes is None:
            raise ConfigError('data_preprocessor: num_classes: must be set to mix labels')
        if set(sizes) == {1}:
            return F.one_hot(labels, num_classes)
        return batch_label_to_onehot(labels, np.cumsum(sizes)[:-1].tolist(), num_classes)

    def _augment(
        self, inputs: Tensor, scores: Tensor | None, samples: Sequence[DataSample]
    ) -> tuple[Tensor, Tensor | None]:
        """Mix the labelled images of a batch with each other, and so the unlabelled ones."""
        labelled, unlabelled = split_by_label(samples)
        if not unlabelled:
            return self._mix(inputs, scores, get_views(samples))
        mixed = torch.empty_like(inputs)
        no_scores = inputs.new_zeros(len(unlabelled), 1)
        for rows, own in ((labelled, scores), (unlabelled, no_scores)):
            if rows:
                index = to_device(torch.tensor(rows), inputs.device)
                views = get_views([samples[row] for row in rows])
                mixed[index], own = self._mix(inputs[index], own, views)
                scores = own if rows is labelled else scores
        return mixed, scores

    def _mix(
        self, inputs: Tensor, scores: Tensor, views: Sequence[View] | None
    ) -> tuple[Tensor, Tensor]:
        if views is None:
            return self.batch_augments(inputs, scores)
        with preserve_global_rng():
            seed_global_rng(views[0].seed, views[0].epoch, hash_views(views), 1)
            return self.batch_augments(inputs, scores)


# The names replace mmpretrain's augments, which copy the order of the images while the host waits.
@BATCH_AUGMENTS.register_module(name='Mixup')
class DeviceMixup(Mixup):
    """mmpretrain's Mixup, for which the host does not wait on a GPU."""

    def mix(self, inputs: Tensor, scores: Tensor) -> tuple[Tensor, Tensor]:
        """Mix images (B, C, H, W) and scores (B, num_classes) as mmpretrain does."""
        share = np.random.beta(self.alpha, self.alpha)
        order = to_device(torch.randperm(len(inputs)), inputs.device)
        return tuple(share * x + (1 - share) * x[order] for x in (inputs, scores))


@BATCH_AUGMENTS.register_module(name='CutMix')
class DeviceCutMix(CutMix):
    """mmpretrain's CutMix, for which the host does not wait on a GPU."""

    def mix(self, inputs: Tensor, scores: Tensor) -> tuple[Tensor, Tensor]:
        """Mix images (B, C, H, W) in place, and scores (B, num_classes), as mmpretrain does."""
        share = np.random.beta(self.alpha, self.alpha)
        order = to_device(torch.randperm(len(inputs)), inputs.device)
        (top, bottom, left, right), share = self.cutmix_bbox_and_lam(inputs.shape[-2:], share)
        box = inputs[..., top:bottom, left:right]
        box.copy_(box[order])
        return inputs, share * scores + (1 - share) * scores[order]


class Renormalize(nn.Module):
    """Undo one data preprocessor's normalisation and apply another's.

    Both are affine in each channel, so mixup and CutMix in between keep their meaning.

    Args:
        source: The data preprocessor that the images have gone through.
        target: The data preprocessor whose normalisation is wanted.
    """

    def __init__(self, source: nn.Module, target: nn.Module) -> None:
        super().__init__()
        self.flip = getattr(source, 'to_rgb', False) != getattr(target, 'to_rgb', False)
        source_mean, source_std = statistics(source)
        target_mean, target_std = statistics(target)
        if self.flip:
            source_mean, source_std = source_mean.flip(0), source_std.flip(0)
        scale, shift = source_std / target_std, (source_mean - target_mean) / target_std
        self.identity = not self.flip and bool((scale == 1).all() and (shift == 0).all())
        self.register_buffer('scale', scale, persistent=False)
        self.register_buffer('shift', shift, persistent=False)

    def forward(self, images: Tensor) -> Tensor:
        """Convert images (B, 3, H, W)."""
        if self.identity:
            return images
        return (images.flip(1) if self.flip else images) * self.scale + self.shift


def statistics(preprocessor: nn.Module) -> tuple[Tensor, Tensor]:
    """Return a preprocessor's mean and standard deviation (3, 1, 1), for pixels of 0 to 255."""
    mean = getattr(preprocessor, 'mean', torch.zeros(3, 1, 1))
    std = getattr(preprocessor, 'std', torch.ones(3, 1, 1))
    return mean.float(), std.float()


class Statistics(NamedTuple):
    """Mean and standard deviation with which weights were trained, for pixels of 0 to 255.

    Attributes:
        mean: One value for each channel.
        std: One value for each channel.
        source: What states them.
        is_bgr: Whether the channels are in the order BGR.
    """

    mean: list[float]
    std: list[float]
    source: str
    is_bgr: bool = False

    def to_fields(self, shared: Mapping[str, Any]) -> dict[str, Any]:
        """Return the fields of a data preprocessor.

        Args:
            shared: The run's data preprocessor, whose ``to_rgb`` tells the order of the images.
        """
        swapped = {'to_rgb': False} if self.is_bgr and shared.get('to_rgb') else {}
        return dict(mean=self.mean, std=self.std, **swapped)

    def equals(self, preprocessor: Mapping[str, Any]) -> bool:
        """Return whether a data preprocessor has these statistics, up to rounding."""
        if self.is_bgr and preprocessor.get('to_rgb'):
            return False
        given = Statistics(preprocessor.get('mean'), preprocessor.get('std'), '')
        pairs = zip(
            [*self.mean, *self.std], [*(given.mean or ()), *(given.std or ())], strict=False
        )
        return are_valid(given) and all(math.isclose(*pair, abs_tol=0.01) for pair in pairs)


def with_statistics(
    side: str, classifier: dict[str, Any], shared: dict[str, Any], checkpoint: str | None = None
) -> dict[str, Any]:
    """Complete the data preprocessor of a Distiller's teacher or student, and log its statistics.

    Args:
        side: ``student``, ``teacher`` or, in a list of teachers, ``teacher[0]``. A teacher gets the
            statistics of its weights. For a student, differing ones are only reported: they belong
            in the config, which checkpoints store (:func:`state_statistics`).
        classifier: Config of the model. Its own ``data_preprocessor`` takes precedence.
        shared: Data preprocessor that both models share.
        checkpoint: Path or URL of the teacher's weights.

    Returns:
        The config with its data preprocessor.

    Raises:
        ConfigError: The data preprocessor is not a dict.
    """
    own = classifier.get('data_preprocessor') or {}
    if not isinstance(own, dict):
        raise ConfigError(f'data_preprocessor={own!r}: must be a dict')
    fields, source, doubt = {**shared, **own}, "the run's", None
    if _has_statistics(own):
        source = "its config's"
    else:
        found = own_statistics(classifier, checkpoint)
        if found is not None and found.equals(fields):
            source = f"the run's, the same as {found.source}"
        elif found is not None and side != 'student':
            fields, source = {**fields, **found.to_fields(shared)}, found.source
        else:
            doubt = found or (_of_timm(classifier) if checkpoint else None)
    used = _describe(fields.get('mean'), fields.get('std'))
    print_log(f'{side}: {used} ({source})', 'current')
    if doubt is not None and not doubt.equals(fields):
        advice = ', '.join(f'{key}={value}' for key, value in doubt.to_fields(fields).items())
        print_log(
            f'{side}: its weights may have been trained with {_describe(doubt.mean, doubt.std)} '
            f'({doubt.source}); if so, set model.{side}.data_preprocessor=dict({advice})',
            'current',
            logging.WARNING,
        )
    return {**classifier, 'data_preprocessor': fields}


def state_statistics(cfg: Config) -> None:
    """Write the statistics of the weights that a run's student starts from into its config.

    The student is the model itself if there is no teacher. A ``data_preprocessor`` of the student
    that has a mean or std is left alone.

    Args:
        cfg: The config; it is changed.
    """
    model = cfg.get('model')
    student = model.get('student') if isinstance(model, dict) and 'teacher' in model else model
    if not isinstance(student, dict) or not isinstance(model.get('data_preprocessor', {}), dict):
        return  # the model reports it
    shared = model.get('data_preprocessor') or cfg.get('data_preprocessor') or {}
    own = student.get('data_preprocessor') or {}
    if _has_statistics(own):
        return
    found = own_statistics(student)
    if found is not None and not found.equals(shared):
        # A Runner adds the config's data_preprocessor only to a model that has none.
        kept = shared if student is model else own
        student['data_preprocessor'] = {**kept, **found.to_fields(shared)}


def check_statistics(preprocessor: nn.Module, checkpoint: str, label: str) -> None:
    """Warn if a model is tested with other statistics than its checkpoint states.

    Args:
        preprocessor: Data preprocessor of the model.
        checkpoint: Path or URL of the checkpoint.
        label: What to call it in the log.
    """
    found = _of_file(checkpoint)
    mean, std = (values.flatten().tolist() for values in statistics(preprocessor))
    to_rgb = bool(getattr(preprocessor, 'to_rgb', False))
    if found is not None and not found.equals(dict(mean=mean, std=std, to_rgb=to_rgb)):
        order = ' of BGR images' if found.is_bgr and to_rgb else ''
        print_log(
            f'{label}: was trained with {_describe(found.mean, found.std)}{order}, but is tested '
            f'with {_describe(mean, std)}; set data_preprocessor as in training',
            'current',
            logging.WARNING,
        )


def own_statistics(
    classifier: Mapping[str, Any], checkpoint: str | None = None
) -> Statistics | None:
    """Find the statistics with which the weights of a classifier were trained.

    In this order: what the file of the weights states, with the config of the run that saved it or
    with the description in its folder; those of the mmpretrain model that it is the file of; timm's
    for weights that timm downloads, and for a file with as many classes as these have; and those
    that transformers' image processor states for weights that a HuggingFaceClassifier loads.

    Args:
        classifier: Config of an mmpretrain classifier.
        checkpoint: Path or URL of its weights. None: those that the config loads.

    Returns:
        The statistics; None if nothing states them.
    """
    checkpoint = checkpoint or weights_file(classifier)
    if checkpoint is None:
        is_loaded = (_timm_part(classifier) or classifier).get('pretrained')
        return (_of_timm(classifier) or _of_transformers(classifier)) if is_loaded else None
    return (
        _of_file(checkpoint)
        or _of_openmmlab(checkpoint)
        or _of_timm(classifier, classifier.get('num_classes', _IMAGENET_CLASSES))
    )


def weights_file(classifier: Mapping[str, Any]) -> str | None:
    """Return the file whose weights the config of a classifier loads; None if it names none.

    Args:
        classifier: Config of an mmpretrain classifier.
    """
    if classifier.get('checkpoint_path'):
        return classifier['checkpoint_path']
    for part in filter(_is_dict, (classifier, classifier.get('backbone'))):
        init_cfg = part.get('init_cfg')
        for each in init_cfg if isinstance(init_cfg, list) else [init_cfg]:
            if isinstance(each, dict) and each.get('type') == 'Pretrained':
                return each.get('checkpoint')
    return None


def _has_statistics(preprocessor: Mapping[str, Any]) -> bool:
    return bool({'mean', 'std'} & preprocessor.keys())


def _describe(mean: Sequence[float] | None, std: Sequence[float] | None) -> str:
    if mean is None and std is None:
        return 'no normalisation'
    if not are_valid(Statistics(mean, std, '')):  # for the preprocessor to report
        return f'mean {mean}, std {std}'
    values = (', '.join(f'{value:.4g}' for value in each) for each in (mean, std))
    return 'mean [{}], std [{}]'.format(*values)


def _of_file(checkpoint: str) -> Statistics | None:
    """Return what a file, or the description of its folder, states."""
    source = f'those of {checkpoint}'
    try:
        if text := read_description(checkpoint, 'config.json'):
            content = json.loads(text)
            return read_pretrained_cfg(content.get('pretrained_cfg', content), source)
        text = read_description(checkpoint, 'config.py')
        if text is None:
            meta = load_checkpoint(checkpoint, read_tensors=False).get('meta')
            text = meta.get('cfg') if isinstance(meta, dict) else None
        return statistics_of_run(parse_config(text), source) if isinstance(text, str) else None
    except (ConfigError, ValueError, AttributeError, TypeError):
        return None  # whoever loads the weights reports it


def statistics_of_run(config: Mapping[str, Any], source: str) -> Statistics | None:
    """Return the statistics of the model that the config of a run trains.

    Args:
        config: The run's config.
        source: What to call it in the log.

    Returns:
        The statistics; None if the config has no valid ones.
    """
    model = config.get('model') or {}
    student = model.get('student') or {}
    shared = model.get('data_preprocessor') or config.get('data_preprocessor') or {}
    fields = {**shared, **(student.get('data_preprocessor') or {})}
    loader = config.get('test_dataloader') or config.get('val_dataloader') or {}
    pipeline = (loader.get('dataset') or {}).get('pipeline') or []
    reads_bgr = any(str(step.get('type')).endswith('LoadImageFromFile') for step in pipeline)
    found = Statistics(
        fields.get('mean'), fields.get('std'), source, reads_bgr and not fields.get('to_rgb')
    )
    return found if are_valid(found) else None


def _of_openmmlab(checkpoint: str) -> Statistics | None:
    """Return the statistics of the mmpretrain model that a file is of."""
    name = Path(checkpoint).name
    if not _OF_OPENMMLAB.search(name):
        return None
    from mmpretrain.apis.model import ModelHub, list_models  # parsing the list takes seconds

    list_models()
    for model, known in ModelHub._models_dict.items():
        if known.weights and Path(known.weights).name == name:
            config = ModelHub.get(model).config.to_dict()
            return statistics_of_run(config, f"mmpretrain's for {model}")
    return None


def _of_timm(classifier: Mapping[str, Any], num_classes: int | None = None) -> Statistics | None:
    """Return the statistics of timm's weights.

    Args:
        classifier: Config of a classifier.
        num_classes: Number of classes that the weights must have. None: any.
    """
    part = _timm_part(classifier)
    if part is None:
        return None
    import timm

    name = str(part.get('model_name'))
    if ':' in name:  # a folder or a repository
        return _of_file(name.removeprefix('local-dir:'))
    known = timm.get_pretrained_cfg(name.rpartition('/')[2])
    if known is None or num_classes not in (None, known.num_classes):
        return None
    fields = {**known.to_dict(), **(part.get('pretrained_cfg_overlay') or {})}
    return read_pretrained_cfg(fields, f"timm's for {name}")


def _of_transformers(classifier: Mapping[str, Any]) -> Statistics | None:
    """Return the statistics of the weights of a HuggingFaceClassifier."""
    if not re.search(r"HuggingFaceClassifier('>)?$", str(classifier.get('type'))):
        return None
    name = str(classifier.get('model_name'))
    known = hugging_face.read_statistics(name)
    if known is None:
        return None
    mean, std, is_bgr = known
    found = read_pretrained_cfg(dict(mean=mean, std=std), f"transformers' for {name}")
    return found and found._replace(is_bgr=is_bgr)


def _is_dict(part: Any) -> bool:
    return isinstance(part, Mapping)


def _timm_part(classifier: Mapping[str, Any]) -> Mapping[str, Any] | None:
    """Return the part of a classifier's config that names a model of timm."""
    for part in filter(_is_dict, (classifier, classifier.get('backbone'))):
        if re.search(r"(TimmClassifier|TIMMBackbone)('>)?$", str(part.get('type'))):
            return part
    return None


def read_pretrained_cfg(known: Mapping[str, Any], source: str) -> Statistics | None:
    """Return the statistics in timm's description of weights.

    Args:
        known: The description: ``mean`` and ``std`` for pixels of 0 to 1, and ``interpolation``.
        source: What it describes, for the log.

    Returns:
        The statistics; None if it has no valid ones.
    """
    if known.get('interpolation'):
        source = f'{source}, which were trained with {known["interpolation"]} resizing'
    mean, std = ([round(255 * v, 3) for v in known.get(key) or ()] for key in ('mean', 'std'))
    found = Statistics(mean, std, source)
    return found if are_valid(found) else None


def are_valid(found: Statistics) -> bool:
    """Return whether statistics, which may be of an untrusted file, can normalise images."""
    return all(
        isinstance(values, (list, tuple))
        and len(values) == 3
        and all(is_number(value) and math.isfinite(value) for value in values)
        for values in (found.mean, found.std)
    ) and all(value > 0 for value in found.std)

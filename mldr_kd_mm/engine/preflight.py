"""Build every part of a run once, so that a mistake is found before anything is written."""

from __future__ import annotations

import copy
import importlib.util
import logging
import multiprocessing
import os
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from itertools import islice
from pathlib import Path
from typing import Any

import torch
from mmengine.config import Config
from mmengine.evaluator import BaseMetric, DumpResults, Evaluator
from mmengine.hooks import CheckpointHook, EarlyStoppingHook, EMAHook, Hook
from mmengine.logging import print_log
from mmengine.model import BaseModel
from mmengine.optim import OptimWrapper, OptimWrapperDict, build_optim_wrapper
from mmengine.registry import init_default_scope
from mmengine.runner import (
    EpochBasedTrainLoop,
    IterBasedTrainLoop,
    LogProcessor,
    Runner,
    TestLoop,
    ValLoop,
)
from mmengine.runner.priority import get_priority
from mmengine.structures import BaseDataElement
from mmengine.utils.dl_utils import set_multi_processing
from mmengine.visualization import Visualizer
from mmpretrain.models import BaseClassifier
from torch import nn
from torch.utils.data import DataLoader, Dataset, Sampler

from mldr_kd_mm.datasets import MixedDataset
from mldr_kd_mm.engine.arguments import RUNNER_FIELDS
from mldr_kd_mm.engine.hooks.data_check import (
    check_disjoint,
    check_index,
    check_same_classes,
    check_steps,
    check_teacher_classes,
    check_unlabeled,
)
from mldr_kd_mm.engine.knn_loop import KNNLoop, KNNTestLoop, bank_config, check_bank_of
from mldr_kd_mm.engine.launch import is_rank_0
from mldr_kd_mm.engine.parts import building, check_arguments, find_fields, find_type, part
from mldr_kd_mm.engine.schedules import check_unit
from mldr_kd_mm.models.distillers.batch import check_has_labels, refuse_one_image
from mldr_kd_mm.models.distillers.distiller import Distiller
from mldr_kd_mm.models.distillers.weights import load_into
from mldr_kd_mm.models.taps.stages import has_head
from mldr_kd_mm.models.weights import use_counted_loading
from mldr_kd_mm.registry import (
    DATASETS,
    EVALUATORS,
    HOOKS,
    LOG_PROCESSORS,
    LOOPS,
    METRICS,
    MODELS,
    OPTIMIZERS,
    PARAM_SCHEDULERS,
    STRATEGIES,
    VISBACKENDS,
    VISUALIZERS,
)
from mldr_kd_mm.structures.view import ViewIndex
from mldr_kd_mm.utils.checkpoint import load_checkpoint
from mldr_kd_mm.utils.errors import (
    ConfigError,
    check_choice,
    check_config,
    check_not_negative,
    check_positive,
    describe,
    did_you_mean,
    is_number,
    named,
)
from mldr_kd_mm.utils.logging import log_warnings_only
from mldr_kd_mm.utils.nested import as_list
from mldr_kd_mm.utils.random import preserve_global_rng

_IMAGES = 2  # that the models see
_OF_RUNNER = ('num_batch_per_epoch', 'disable_subprocess_warning')  # in a data loader's config
# mmengine's Runner accepts only all or none of these.
_GROUPS = {
    'train': ('train_dataloader', 'train_cfg', 'optim_wrapper'),
    'val': ('val_dataloader', 'val_cfg', 'val_evaluator'),
    'test': ('test_dataloader', 'test_cfg', 'test_evaluator'),
}


def preflight(cfg: Config, *fields: str) -> None:
    """Check a config by building the parts of its run and using them on two images.

    The student's own loss runs on the first training images, and the metrics on the student's
    predictions for the first validation images. Only rank 0 does it. The parts are discarded: the
    Runner builds them again, under its own seed. Random numbers that are drawn afterwards are the
    same as without this check.

    Args:
        cfg: The config; it is not changed.
        fields: The fields that the run requires.

    Raises:
        ConfigError: If a field is missing, a part cannot be built or does not fit the others, the
            weights of ``load_from`` do not fit, or the work directory has a name that cannot be
            stored.
    """
    for field in fields:
        if cfg.get(field) is None:
            raise ConfigError(f"the config has no field '{field}'")
    if not is_rank_0(cfg):
        return
    check_utf8(config=Path(cfg.filename or '').name, work_dir=os.path.abspath(cfg.work_dir))
    cfg = copy.deepcopy(cfg)
    scope = cfg.get('default_scope', 'mmengine')
    if not isinstance(scope, str):
        raise ConfigError(f'default_scope={scope!r}: must be the name of a package')
    init_default_scope(scope)
    groups = [name for name, parts in _GROUPS.items() if set(parts) & {*fields}]
    with log_warnings_only(), preserve_global_rng(), _visualizer(cfg):
        _check_fields(cfg)
        for group in groups:
            if group != 'train' or 'train_cfg' in fields:
                _check_group(cfg, group)
        hooks = list(_hooks(cfg))
        model = _build_model(cfg) if 'model' in fields else None
        if model is not None and cfg.get('load_from') and not cfg.get('resume'):
            _check_load_from(cfg, model, 'train_cfg' in fields)
        wrapper = _build_optim_wrapper(cfg, model) if 'optim_wrapper' in fields else None
        loaders = {group: _check_data(cfg, group, model, wrapper, hooks) for group in groups}
        train, val = (
            loaders[group].dataset if group in loaders else None for group in ('train', 'val')
        )
        check_teacher_classes(model, train, val)
        if train is not None and val is not None:
            check_same_classes(train, val)
            check_disjoint(train, val)


def check_utf8(**names: str) -> None:
    """Raise a ConfigError for a name that logs and checkpoints cannot contain."""
    for field, name in names.items():
        try:
            name.encode()
        except UnicodeEncodeError:
            raise ConfigError(f'{field}={name!r}: must be UTF-8; rename it') from None


def check_strategy(cfg: Config) -> None:
    """Raise a ConfigError for a strategy that is not read or cannot run here."""
    if cfg.get('strategy') is None:
        return
    if cfg.get('runner_type') != 'FlexibleRunner':
        raise ConfigError("strategy: only runner_type='FlexibleRunner' reads it")
    find_type(cfg.strategy, STRATEGIES, 'strategy')
    kind = cfg.strategy.type
    if cfg.get('launcher', 'none') == 'none':
        raise ConfigError(f'strategy: {kind} needs a launcher: tools/dist_train.sh CONFIG GPUS')
    if kind == 'DeepSpeedStrategy' and importlib.util.find_spec('deepspeed') is None:
        raise ConfigError("strategy: DeepSpeedStrategy needs pip install 'deepspeed==0.16.9'")


def _check_fields(cfg: Config) -> None:
    """Check fields without a type, and refuse misspelt ones, since the Runner ignores them."""
    for field in cfg:
        hint = did_you_mean(field, RUNNER_FIELDS, cutoff=0.9)
        # Configs name their own values model2 or _model.
        if hint and field.strip('_0123456789') not in RUNNER_FIELDS:
            raise ConfigError(f'{field}: nothing reads this field; {hint}')
    _check_randomness(cfg.get('randomness', dict(seed=None)))
    _check_environment(cfg.get('env_cfg', {}))
    scaling = cfg.get('auto_scale_lr') or dict(base_batch_size=1)
    _check_dicts(auto_scale_lr=scaling)
    check_positive(**{'auto_scale_lr.base_batch_size': scaling.get('base_batch_size')})
    _check_logging(cfg.get('log_level', 'INFO'), cfg.get('log_processor'))


def _check_randomness(randomness: Any) -> None:
    _check_dicts(randomness=randomness)
    check_arguments(Runner.set_randomness, randomness, 'randomness')
    if randomness.get('seed') is not None or 'seed' not in randomness:
        check_not_negative(**{'randomness.seed': randomness.get('seed')})


def _check_environment(environment: Any) -> None:
    _check_dicts(env_cfg=environment)
    processes = environment.get('mp_cfg', {})
    _check_dicts(**{'env_cfg.mp_cfg': processes})
    check_arguments(set_multi_processing, processes, 'env_cfg.mp_cfg')
    method = processes.get('mp_start_method', 'fork')
    threads = processes.get('opencv_num_threads', 0)
    check_choice(
        multiprocessing.get_all_start_methods(), **{'env_cfg.mp_cfg.mp_start_method': method}
    )
    check_not_negative(**{'env_cfg.mp_cfg.opencv_num_threads': threads})


def _check_logging(level: Any, processor: Any) -> None:
    if not isinstance(logging.getLevelName(level), int):
        raise ConfigError(f'log_level={level!r}: must be DEBUG, INFO, WARNING or ERROR')
    if processor is None:
        return
    _check_dicts(log_processor=processor)
    processor = processor if 'type' in processor else {'type': LogProcessor, **processor}
    check_positive(**{'log_processor.window_size': processor.get('window_size', 10)})
    with part(processor, LOG_PROCESSORS, 'log_processor'):
        LOG_PROCESSORS.build(processor)


def _check_dicts(**fields: Any) -> None:
    for field, value in fields.items():
        if not isinstance(value, Mapping):
            raise ConfigError(f'{field}={value!r}: must be a dict')


def _check_group(cfg: Config, group: str) -> None:
    """Check the loop of training, validation or testing, and that all its fields are there."""
    for field in _GROUPS[group]:
        if cfg.get(field) is None:
            raise ConfigError(
                f'{field}: must be set, as {" and ".join(_GROUPS[group])} belong together'
            )
    field = f'{group}_cfg'
    config = cfg[field]
    _check_dicts(**{field: config})
    loop = dict(val=ValLoop, test=TestLoop).get(group)
    if 'type' in config:
        loop = find_type(config, LOOPS, field)
        if 'by_epoch' in config:
            raise ConfigError(f'{field}.by_epoch: must not be set beside a type; remove one')
    elif group == 'train':
        if not isinstance(config.get('by_epoch'), bool):
            raise ConfigError(
                f'{field}: must have by_epoch=True with max_epochs, or '
                'by_epoch=False with max_iters'
            )
        loop = EpochBasedTrainLoop if config.by_epoch else IterBasedTrainLoop
        length = 'max_epochs' if config.by_epoch else 'max_iters'
        check_positive(**{f'{field}.{length}': config.get(length)})
    check_arguments(loop, [name for name in config if name != 'by_epoch'], field)
    if loop in (KNNLoop, KNNTestLoop):
        bank = config.get('bank_dataloader') or bank_config(cfg, group)
        check_bank_of(_build_loader(bank, f'{field}.bank_dataloader').dataset, group)
    if 'val_interval' in config:
        check_positive(**{f'{field}.val_interval': config.val_interval})
    if 'val_begin' in config:
        check_not_negative(**{f'{field}.val_begin': config.val_begin})


@contextmanager
def _visualizer(cfg: Config) -> Iterator[None]:
    """Build the visualizer, which hooks may look for, and forget it afterwards."""
    config = cfg.get('visualizer')
    if config is None or isinstance(config, Visualizer):
        yield
        return
    cls = find_type(config, VISUALIZERS, 'visualizer')
    if not (isinstance(cls, type) and issubclass(cls, Visualizer)):
        raise ConfigError(f'visualizer.type={config["type"]!r}: must be a Visualizer')
    for field, backend in _listed(config.get('vis_backends') or [], 'visualizer.vis_backends'):
        with part({k: v for k, v in backend.items() if k != 'name'}, VISBACKENDS, field):
            pass
    managers = {manager: dict(manager._instance_dict) for manager in (cls, Visualizer)}
    try:
        with part(config, VISUALIZERS, 'visualizer'):
            VISUALIZERS.build({'name': 'preflight', 'save_dir': cfg.work_dir, **config})
        yield
    finally:
        for manager, instances in managers.items():
            manager._instance_dict.clear()
            manager._instance_dict.update(instances)


def _hooks(cfg: Config) -> Iterator[tuple[str, Hook]]:
    """Build the hooks, with the name of each in the config."""
    defaults = cfg.get('default_hooks') or {}
    if not isinstance(defaults, Mapping):
        raise ConfigError(f'default_hooks={defaults!r}: must be a dict of name -> config of a hook')
    items = [(f'default_hooks.{name}', hook) for name, hook in defaults.items() if hook is not None]
    custom = [] if cfg.get('custom_hooks') is None else cfg.custom_hooks
    for field, hook in [*items, *_listed(custom, 'custom_hooks', Hook)]:
        if isinstance(hook, Hook):
            yield field, hook
            continue
        check_config(**{field: hook})
        config = {key: value for key, value in hook.items() if key != 'priority'}
        with part(config, HOOKS, field):
            if hook.get('priority') is not None:
                get_priority(hook['priority'])
            built = HOOKS.build(config)
            if isinstance(built, EMAHook):  # it builds the average when training begins
                MODELS.build(built.ema_cfg, default_args=dict(model=nn.Identity()))
        if not isinstance(built, Hook):
            raise ConfigError(f'{field}.type={hook["type"]!r}: must be a Hook')
        if isinstance(built, CheckpointHook):
            check_arguments(Runner.save_checkpoint, built.args, field)
            if not is_number(built.interval, int):
                raise ConfigError(f'{field}.interval={built.interval!r}: must be an integer')
        yield field, built


def _build_model(cfg: Config) -> nn.Module:
    check_config(model=cfg.model)
    if cfg.get('data_preprocessor'):
        cfg.model.setdefault('data_preprocessor', cfg.data_preprocessor)
    with building(cfg.model, 'model'):
        model = MODELS.build(cfg.model)
    kinds = find_fields(cfg.model, 'type', 'model')
    paths = [path for path, kind in kinds if str(kind).endswith('Pretrained')]
    if paths:
        use_counted_loading()
        field = paths[0].removesuffix('.type')
        try:
            with named(field):
                model.init_weights()
        except ConfigError as error:  # from the reader of checkpoints
            raise ConfigError(f'{field}: {str(error).removeprefix(f"{field}: ")}') from error
    return model


def _check_load_from(cfg: Config, model: nn.Module, trains: bool) -> None:
    """Raise a ConfigError if the weights that a run starts from do not fit its model."""
    if cfg.get('strategy') and os.path.isdir(cfg.load_from):
        return  # the strategy's own form
    field = 'load_from' if trains else 'checkpoint'
    content = load_checkpoint(cfg.load_from, field)
    load_into(model, content, f'{field}={cfg.load_from!r}', trains)


def _build_optim_wrapper(cfg: Config, model: nn.Module) -> OptimWrapper:
    check_strategy(cfg)
    config = cfg.optim_wrapper
    _check_dicts(optim_wrapper=config)
    optimizer = config.get('optimizer')
    if optimizer is not None:
        find_type(optimizer, OPTIMIZERS, 'optim_wrapper.optimizer')
    with building(config, 'optim_wrapper'):
        return build_optim_wrapper(model, config)


def _check_data(
    cfg: Config,
    group: str,
    model: nn.Module | None,
    wrapper: OptimWrapper | None,
    hooks: Sequence[tuple[str, Hook]],
) -> DataLoader:
    """Build a data loader, use the model on its first images, and return the loader."""
    field = f'{group}_dataloader'
    loader = _build_loader(cfg[field], field)
    if group == 'train':
        check_steps(loader)
    if group == 'train' and wrapper is not None:
        _check_schedulers(cfg, wrapper, loader)
    if not isinstance(model, BaseModel):
        return loader
    batch = _first_batch(cfg[field], field, loader)
    if batch is None:
        return loader
    if group == 'train':
        check_unlabeled(loader.dataset, model)
        check_index(loader.dataset, model)
        _try_loss(cfg, model, batch)
    elif 'type' not in cfg[f'{group}_cfg']:  # another loop may compute metrics in its own way
        metrics = _try_metrics(cfg, group, model, batch, loader)
        if group == 'val' and metrics is not None:
            _check_monitors(cfg, hooks, metrics)
    return loader


def _build_loader(config: Any, field: str) -> DataLoader:
    if isinstance(config, DataLoader):
        return config
    for name, kind in (('dataset', Dataset), ('sampler', Sampler)):
        if not isinstance(config.get(name), kind):
            check_config(**{f'{field}.{name}': config.get(name)})
    check_positive(**{f'{field}.batch_size': config.get('batch_size')})
    check_arguments(DataLoader, [name for name in config if name not in _OF_RUNNER], field)
    dataset = config['dataset']
    if isinstance(dataset, Mapping):
        with part(dataset, DATASETS, f'{field}.dataset'):
            dataset = DATASETS.build(dataset)
            if hasattr(dataset, 'full_init'):
                dataset.full_init()
    with building(config, field):
        # build_dataloader would copy a data set, but not a function that returns it.
        return Runner.build_dataloader({**config, 'dataset': dict(type=lambda: dataset)}, seed=0)


def _first_batch(config: Any, field: str, loader: DataLoader) -> Any:
    """Load the first images in this process; None if there are none."""
    with building(config, field):
        indices = list(islice(loader.sampler, _IMAGES))
    if not indices:
        return None
    dataset = loader.dataset
    if isinstance(dataset, MixedDataset):
        indices[-1] = _last_index(dataset, indices[0])
    try:
        fetch = getattr(dataset, '__getitems__', None)  # as torch does
        batch = loader.collate_fn(fetch(indices) if fetch else [dataset[i] for i in indices])
        if isinstance(batch, Mapping) and 'inputs' not in batch:
            raise KeyError('img')  # transforms of mmcv pass on samples without an image
        return batch
    except ConfigError:
        raise
    except Exception as error:
        begin = {('img',): 'must begin', ('img_path',): 'must not begin'}.get(error.args)
        if begin is None or not isinstance(error, KeyError):
            message = f'{field}.dataset: the first images: {describe(error)}'
        else:
            message = (
                f'{field}.dataset.pipeline: {begin} with LoadImageFromFile for '
                f'{type(dataset).__name__}; if it comes from a base config, replace the whole data '
                'set by dict(_delete_=True, ...)'
            )
        raise ConfigError(message) from error


def _last_index(dataset: MixedDataset, first: int) -> int:
    """Return the index of an image without a label, with a view if another index has one."""
    index = len(dataset) - 1
    return ViewIndex(first.view._replace(index=index)) if isinstance(first, ViewIndex) else index


def _check_schedulers(cfg: Config, wrapper: OptimWrapper, loader: DataLoader) -> None:
    """Build the schedules of one optimizer; those of several are left to mmengine."""
    schedules = cfg.get('param_scheduler')
    if schedules is None or isinstance(wrapper, OptimWrapperDict):
        return
    if isinstance(schedules, Mapping):
        schedules = [schedules]
    for field, schedule in _listed(schedules, 'param_scheduler'):
        ends = cfg.train_cfg.get('max_epochs' if schedule.get('by_epoch', True) else 'max_iters')
        config = dict(schedule) if ends is None else {'end': ends, **schedule}
        named_arguments = {k: v for k, v in config.items() if k != 'convert_to_iter_based'}
        if 'end' not in schedule:
            named_arguments.pop('end', None)
        with part(named_arguments, PARAM_SCHEDULERS, field):
            default = dict(optimizer=wrapper, epoch_length=len(loader))
            scheduler = PARAM_SCHEDULERS.build(config, default_args=default)
        if 'max_iters' in cfg.train_cfg:
            check_unit(scheduler, field)


def _try_loss(cfg: Config, model: BaseModel, batch: Any) -> None:
    """Compute the student's own loss on the first training images, if the model trains with it."""
    if type(model).train_step is not BaseModel.train_step:
        return
    samples = batch.get('data_samples') if isinstance(batch, Mapping) else None
    check_has_labels(samples or (), 'train_dataloader.dataset')
    student = getattr(model, 'student', model)
    if isinstance(student, BaseClassifier) and not has_head(student):
        return
    weights = find_fields(cfg.model, 'class_weight', 'model')
    paths = [path for path, value in weights if isinstance(value, (list, tuple))]
    label = paths[0] if paths else 'model'
    model.train()
    with named(f'{label}: the loss of the first images'), refuse_one_image(_IMAGES):
        data = model.data_preprocessor(batch, True)
        if isinstance(model, Distiller):
            losses = model.tapped_student.own_loss(**data)
        else:  # as BaseModel calls itself
            is_named = isinstance(data, Mapping)
            losses = model(**data, mode='loss') if is_named else model(*data, mode='loss')
        model.parse_losses(losses)


@torch.no_grad()
def _try_metrics(
    cfg: Config, group: str, model: BaseModel, batch: Any, loader: DataLoader
) -> set[str] | None:
    """Compute the metrics on predictions for the first images.

    Returns:
        Their names; None if a metric of another package fails, as it may need more images.
    """
    field = f'{group}_evaluator'
    evaluator = _build_evaluator(cfg[field], field)
    evaluator.dataset_meta = getattr(loader.dataset, 'metainfo', None)
    model.eval()
    with named(f'{group}_dataloader: predicting the first images'):
        predictions = model.val_step(batch)
    samples = [sample for sample in predictions if isinstance(sample, BaseDataElement)]
    scores = [sample.pred_score for sample in samples if 'pred_score' in sample]
    for path, value in find_fields(cfg[field], 'topk', field):
        if scores and any(is_number(k) and k > len(scores[0]) for k in as_list(value)):
            raise ConfigError(
                f'{path}={value!r}: must be at most {len(scores[0])}, the number of classes'
            )
    # DumpResults writes a file.
    evaluator.metrics = [each for each in evaluator.metrics if not isinstance(each, DumpResults)]
    with named(field):
        evaluator.process(predictions, batch)
        try:
            return set(evaluator.evaluate(len(predictions)))
        except Exception as error:
            if all(_is_shipped(metric) for metric in evaluator.metrics):
                raise
            text = f'{field}: not checked, as it fails on two images: {describe(error)}'
            print_log(text, 'current', logging.WARNING)
    return None


def _is_shipped(metric: BaseMetric) -> bool:
    """Return whether a metric is of this package or of OpenMMLab."""
    return type(metric).__module__.partition('.')[0] in ('mldr_kd_mm', 'mmengine', 'mmpretrain')


def _build_evaluator(config: Any, field: str) -> Evaluator:
    if isinstance(config, Evaluator):
        return copy.deepcopy(config)
    is_custom = isinstance(config, Mapping) and 'metrics' in config
    metrics = config['metrics'] if is_custom else config
    field_of_metrics = f'{field}.metrics' if is_custom else field
    if isinstance(metrics, Mapping):
        items = [(field_of_metrics, metrics)]
    else:
        items = list(_listed(metrics, field_of_metrics))
    for path, metric in items:
        with part(metric, METRICS, path):
            METRICS.build(metric)
    with building(config, field):
        if is_custom:
            return EVALUATORS.build({'type': 'Evaluator', **config})
        return Evaluator(config)


def _check_monitors(cfg: Config, hooks: Sequence[tuple[str, Hook]], metrics: set[str]) -> None:
    """Check that the metrics that parts of the run watch exist."""
    watched: list[tuple[str, Any]] = []
    for field, hook in hooks:
        if isinstance(hook, CheckpointHook):
            watched.append((f'{field}.save_best', hook.save_best))
        elif isinstance(hook, EarlyStoppingHook):
            watched.append((f'{field}.monitor', hook.monitor))
    watched += find_fields(cfg.get('param_scheduler'), 'monitor', 'param_scheduler')
    for field, names in watched:
        for name in [names] if isinstance(names, str) else names or []:
            if name not in metrics and name != 'auto':
                raise ConfigError(
                    f'{field}={name!r}: no metric of val_evaluator; available: '
                    f'{", ".join(sorted(metrics))}'
                )


def _listed(values: Any, field: str, *kinds: type) -> Iterator[tuple[str, Any]]:
    """Yield the items of a list of configs, with the path of each.

    Raises:
        ConfigError: It is not a list, or an item is neither a dict with a type nor of these kinds.
    """
    if isinstance(values, Mapping):
        values = [values]
    if not isinstance(values, (list, tuple)):
        raise ConfigError(f'{field}={values!r}: must be a list of dicts with a type')
    for number, value in enumerate(values):
        if not isinstance(value, kinds):
            check_config(**{f'{field}.{number}': value})
        yield f'{field}.{number}', value

"""A config with one random mistake either builds or is rejected with a one-line error.

``CONFIG_FUZZ=20`` tries twenty times as many mistakes, different ones each time.
"""

from __future__ import annotations

import copy
import functools
import inspect
import math
import operator
import os
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
from helpers import mldr
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from mmengine.config import Config, ConfigDict
from mmpretrain.structures import DataSample
from torch import nn

from mldr_kd_mm import ConfigError, Distiller
from mldr_kd_mm.engine.preflight import preflight
from mldr_kd_mm.models import losses
from mldr_kd_mm.models.builder import build_neck
from mldr_kd_mm.models.distillers.batch import check_labels
from mldr_kd_mm.models.distillers.loss_entry import LossEntry
from mldr_kd_mm.models.necks.outputs import check_outputs, named_outputs
from mldr_kd_mm.models.taps.layout import Layout
from mldr_kd_mm.models.taps.recorder import FeatureRecorder
from mldr_kd_mm.models.taps.tapped_model import Probe, TappedModel
from mldr_kd_mm.registry import MODELS
from mldr_kd_mm.utils.errors import named

MISSING = object()
WIDTHS = dict(student_width=4, teacher_width=6)
FACTOR = int(os.environ.get('CONFIG_FUZZ', 1))

NUMBERS = [0, 1, -1, 3, 1.5, -0.5, 1e-300, 1e300, math.nan, math.inf, -math.inf, True, False, 1j]
# torch refuses such sizes at once, as no machine has the memory. Not for the depth of a model,
# which would be built layer by layer.
HUGE = [2**62, 2**70, 10**400]
TEXTS = ['', 'x', '.', ':', 'a.b', 'a\nb', 'ä', 'logits', 'feature', 'stage1', 'stages', 'backbone']
TYPES = [*losses.__all__, 'MSDFNeck', 'FeatureRecorder', 'Distiller', 'ResNet', 'ClsHead', 'a.B']
UNKNOWN = ['x', 'typ', 'Type', 'temprature', 'self', 'args', 'loss', '']
OTHERS = [None, object, len, b'x', {1}, range(3), [], (), {}, [[]], [None], {'type': None}, {1: 2}]


def values(huge: bool) -> st.SearchStrategy:
    """Draw values of wrong types and ranges."""
    known = [*NUMBERS, *TEXTS, *TYPES, *OTHERS, *(HUGE if huge else [])]
    leaves = st.sampled_from(known) | st.text(max_size=5)
    # No integers of arbitrary size: a model would try to build most of them.
    return leaves | st.recursive(
        leaves,
        lambda inner: (
            st.lists(inner, max_size=4)
            | st.lists(inner, max_size=4).map(tuple)
            | st.dictionaries(st.sampled_from(['type', 'loss', 'x', 'init_cfg']), inner, max_size=2)
        ),
        max_leaves=4,
    )


def places(config: Any, path: tuple = ()) -> Iterator[tuple]:
    """Yield the path of every entry of a config."""
    items = config.items() if isinstance(config, dict) else ()
    items = enumerate(config) if isinstance(config, list) else items
    for key, value in items:
        yield (*path, key)
        yield from places(value, (*path, key))


def changed(config: dict, place: tuple, value: Any = MISSING) -> dict:
    """Return a copy with another value at a path, or without the entry."""
    config = copy.deepcopy(config)
    *path, key = place
    parent = functools.reduce(operator.getitem, path, config)
    if value is MISSING:
        del parent[key]
    else:
        parent[key] = value
    return config


@st.composite
def mistakes(draw, config: dict) -> dict:
    """Draw a config with one mistake."""
    place = draw(st.sampled_from(list(places(config))))
    kind = draw(st.sampled_from(['wrong', 'wrong', 'wrong', 'missing', 'unknown']))
    if kind == 'missing':
        return changed(config, place)
    if kind == 'unknown' and isinstance(place[-1], str):
        place = (*place[:-1], draw(st.sampled_from(UNKNOWN)))
    inside_a_model = place[0] in ('teacher', 'student') and len(place) > 1
    return changed(config, place, draw(values(huge=not inside_a_model)))


def assert_one_line(build: Callable[[], None]) -> None:
    """Assert that it builds or raises one of our errors with a one-line message."""
    try:
        build()
    except ConfigError as error:
        message = str(error)
        assert len(message.splitlines()) == 1, message
        field, _, reason = message.partition(':')
        assert field, message
        assert reason, message


def many(count: int) -> settings:
    return settings(
        max_examples=count * FACTOR,
        derandomize=FACTOR == 1,
        deadline=None,
        print_blob=True,
        database=None,
        suppress_health_check=list(HealthCheck),
    )


def every_argument(kind: type, **given: Any) -> dict:
    """Return a config that names every argument, so that each can be wrong."""
    parameters = inspect.signature(kind).parameters.values()
    # A loss without arguments has nn.Module's.
    named = [p for p in parameters if p.kind not in (p.VAR_POSITIONAL, p.VAR_KEYWORD)]
    defaults = {p.name: None if p.default is p.empty else p.default for p in named}
    return dict(type=kind.__name__) | defaults | given


DISTILLER = mldr(
    student_recorder=dict(type='FeatureRecorder', taps='stages'),
    teacher_recorder=dict(type='FeatureRecorder', taps=dict(stage1='backbone.layers.2')),
    neck=dict(
        type='MSDFNeck',
        in_channels=[8, 16, 32, 64],
        project_dim=64,
        grids=[None] * 4,
        num_classes=10,
        gate_dim=12,
    ),
    losses=[
        dict(
            loss=every_argument(losses.DFRALoss),
            student=['logits', 'stage_logits', 'fused_logits'],
            teacher='logits',
            name='dfra',
        ),
        dict(
            loss=dict(type='FitNetLoss', student_width=8, teacher_grid=[4, 4]),
            student=['stage1'],
            teacher=['stage1'],
            weight=[0.5],
            name='hints',
        ),
    ],
    teacher_checkpoint=None,
    input_size=[3, 32, 32],
    teacher_input_size=(3, 32, 32),
    teacher_precision='fp32',
    teacher_compile=False,
)
# The type is the registry's to check.
del DISTILLER['type']


PROBES = (
    Probe(
        dict(
            logits=torch.ones(1, 5),
            stage_logits=torch.ones(3, 1, 5),
            feature=torch.ones(1, 4),
            stage1=torch.ones(1, 4, 2, 2),
        ),
        dict(stage1=Layout('BCHW', 4, (2, 2))),
    ),
    Probe(
        dict(logits=torch.ones(1, 5), feature=torch.ones(1, 6), stage1=torch.ones(1, 16, 6)),
        dict(stage1=Layout('BNC', 6, (4, 4))),
    ),
)
OF_LOGITS = dict(student=['logits', 'stage_logits'], teacher='logits', weight=[1, 0.5], name='a')
OF_FEATURES = dict(student='feature', teacher='feature', weight=1, name='a')
SMALL = dict(
    CRDLoss=dict(num_samples=9, negatives=4, dim=3, **WIDTHS),
    CCLoss=dict(dim=3, **WIDTHS),
    InfoNCELoss=dict(dim=3, **WIDTHS),
    HCDLoss=WIDTHS,
    RSDLoss=WIDTHS,
    FitNetLoss=dict(student_grid=[2, 2], teacher_grid=[4, 4], **WIDTHS),
)


def comparison(kind: str) -> dict:
    """Return the config of one entry of a Distiller's ``losses``."""
    names = OF_LOGITS if hasattr(getattr(losses, kind), 'compares_logits') else OF_FEATURES
    if kind == 'FitNetLoss':
        names = dict(student=['stage1'], teacher=['stage1'], weight=[0.5], name='a')
    loss = every_argument(getattr(losses, kind), **SMALL.get(kind, {}))
    return dict(loss=loss, **copy.deepcopy(names))


def build_distiller(config: dict) -> None:
    Distiller(**ConfigDict(config))


def build_comparison(config: dict) -> None:
    LossEntry(**config).build(*PROBES)


class TestOneMistake:
    """A wrong value, a missing entry or an unknown entry, anywhere in a config."""

    def test_none_builds(self):
        build_distiller(copy.deepcopy(DISTILLER))
        for kind in losses.__all__:
            build_comparison(comparison(kind))
        check_run(RUN)

    @pytest.mark.slow
    @many(300)
    @given(mistakes(DISTILLER))
    def test_in_a_distiller(self, mistake):
        assert_one_line(lambda: build_distiller(mistake))

    @pytest.mark.parametrize('kind', losses.__all__)
    @many(60)
    @given(st.data())
    def test_in_a_comparison(self, kind, data):
        mistake = data.draw(mistakes(comparison(kind)))
        assert_one_line(lambda: build_comparison(mistake))


class Returns(nn.Module):
    """A neck that returns the same for any features."""

    def __init__(self, output):
        super().__init__()
        self.output = output

    def forward(self, features):
        return self.output


@many(60)
@given(st.data())
def test_what_a_neck_returns(data):
    """Values, and dicts of values, of any kind."""
    tensors = st.sampled_from([torch.ones(1, 5), torch.ones(2, 1, 5), torch.ones(()), None, [], 1])
    names = st.sampled_from(['stage_logits', 'fusion_weights', 'x', 'logits', '', 0, None])
    output = data.draw(values(huge=False) | tensors | st.dictionaries(names, tensors, max_size=3))

    def build():
        found = named_outputs(output)
        check_outputs(found, 2, ['logits'])

    assert_one_line(build)
    assert_one_line(lambda: build_neck(dict(type=Returns, output=output), ['stage1'], *PROBES))


SAMPLE = dict(gt_label=torch.tensor([1]), gt_score=torch.ones(5), sample_idx=3, img_path='a.png')


@many(100)
@given(st.data())
def test_a_sample(data):
    """A field of a sample is missing or wrong."""
    fields = dict(SAMPLE)
    for name in data.draw(st.sets(st.sampled_from(sorted(SAMPLE)))):
        del fields[name]
    sample = DataSample()
    for name, value in fields.items():
        sample.set_field(value, name, field_type='data' if name[:2] == 'gt' else 'metainfo')
    assert_one_line(lambda: check_labels(None, ({'data_samples': [sample]}, True), 5))
    if not {'gt_label', 'gt_score'} & set(fields):
        with pytest.raises(ConfigError, match='has no label'):
            check_labels(None, ({'data_samples': [sample]}, True), 5)


TAPPED = nn.Sequential(nn.Conv2d(3, 4, 2, 2), nn.ReLU(inplace=True), nn.Flatten())
TAPPED.forward = lambda images, mode='tensor': nn.Sequential.forward(TAPPED, images)
PATHS = ['0', '1', '2', '', ':input', '0:input', '0:0', '0:1', '1:9', ':', '0:', '3', '0.0', 'a b']


@many(100)
@given(st.dictionaries(st.sampled_from(TEXTS), st.sampled_from(PATHS), max_size=3), st.data())
def test_taps(taps, data):
    """Paths of any kind, some of which nothing reads."""
    wanted = data.draw(st.sets(st.sampled_from(sorted(taps)))) if taps else set()

    def probe():
        with named('student'):
            TappedModel(TAPPED, FeatureRecorder(taps)).probe(sorted(wanted), (3, 4, 4))

    assert_one_line(probe)
    if {'3', '0.0', 'a b'} & set(taps.values()):
        with pytest.raises(ConfigError):
            probe()


RUN = dict(
    visualizer=dict(
        type='UniversalVisualizer', vis_backends=[dict(type='LocalVisBackend', img_save_dir='x')]
    ),
    default_hooks=dict(
        logger=dict(type='LoggerHook', interval=1),
        checkpoint=dict(type='AtomicCheckpointHook', interval=1, save_best='accuracy/top1'),
        figures=dict(type='FigureHook', interval=2),
    ),
    custom_hooks=[dict(type='EMAHook', momentum=0.1, priority='LOW')],
    log_processor=dict(window_size=5),
    randomness=dict(seed=0),
)


def check_run(config: dict) -> None:
    preflight(Config(ConfigDict(config, work_dir='run', default_scope='mldr_kd_mm')))


@many(100)
@given(mistakes(RUN))
def test_a_run(mistake):
    """Visualizer, hooks and log, which are checked without a model."""
    assert_one_line(lambda: check_run(mistake))


@pytest.mark.parametrize(
    'config',
    [loss for kind in losses.__all__ if len(loss := comparison(kind)['loss']) > 1]
    + [DISTILLER['neck'], dict(type='MSDFNeck', in_channels=[8, 9], grids=[[2, 2], [2, 2]])]
    + [DISTILLER['student_recorder'], DISTILLER['teacher_recorder']],
    ids=lambda config: config['type'],
)
@many(60)
@given(st.data())
def test_a_wrong_value_alone(config, data):
    """Parts that are built on their own, without a Distiller that names them in errors."""
    config = dict(num_classes=5) | config if config['type'] == 'MSDFNeck' else config
    key = data.draw(st.sampled_from(sorted(config.keys() - {'type'})))
    place = data.draw(st.sampled_from([path for path in places(config) if path[0] == key]))
    wrong = changed(config, place, data.draw(values(huge=False)))
    assert_one_line(lambda: MODELS.build(wrong))

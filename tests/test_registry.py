"""Every spelling of a type finds its class, in both default scopes and from any registry."""

from __future__ import annotations

import subprocess
import sys

import mmengine.registry
import mmpretrain.datasets
import mmpretrain.models
import mmpretrain.registry
import pytest
from helpers import mldr, resnet
from mmengine.registry import DefaultScope, Registry

import mldr_kd_mm
from mldr_kd_mm import registry
from mldr_kd_mm.datasets import VerifiedCIFAR100
from mldr_kd_mm.engine.hooks import TeacherAccuracyHook

SCOPES = ['mldr_kd_mm', 'mmpretrain']
PACKAGES = [mmengine, mmpretrain, mldr_kd_mm]
MMPRETRAIN = {
    name: value
    for name, value in vars(mmpretrain.registry).items()
    if isinstance(value, Registry) and value.scope == 'mmpretrain'
}
CONFIGS = {
    'Distiller': mldr(),
    'DFRALoss': dict(),
    'MSDFNeck': dict(in_channels=[8], num_classes=3),
    'FeatureRecorder': dict(),
    'TeacherAccuracyHook': dict(),
    'ImageClassifier': resnet(),
    'CIFAR100': dict(data_root='unread', lazy_init=True),
}


def build(package, kind: str, scope: str, type_: str):
    """Build from one package's registry with the default scope of a config."""
    config = {**CONFIGS[type_.split('.')[-1]], 'type': type_}
    with DefaultScope.overwrite_default_scope(scope):
        return getattr(package.registry, kind).build(config)


@pytest.mark.parametrize('package', PACKAGES, ids=lambda package: f'from {package.__name__}')
@pytest.mark.parametrize('scope', SCOPES)
def test_every_spelling(package, scope):
    for kind, expected, own in (
        ('MODELS', mldr_kd_mm.Distiller, 'mldr_kd_mm'),
        ('MODELS', mldr_kd_mm.DFRALoss, 'mldr_kd_mm'),
        ('MODELS', mldr_kd_mm.MSDFNeck, 'mldr_kd_mm'),
        ('MODELS', mldr_kd_mm.FeatureRecorder, 'mldr_kd_mm'),
        ('HOOKS', TeacherAccuracyHook, 'mldr_kd_mm'),
        ('MODELS', mmpretrain.models.ImageClassifier, 'mmpretrain'),
    ):
        for type_ in (expected.__name__, f'{own}.{expected.__name__}'):
            assert type(build(package, kind, scope, type_)) is expected, type_


@pytest.mark.parametrize('package', PACKAGES, ids=lambda package: f'from {package.__name__}')
def test_a_name_that_mmpretrain_has_too(package):
    for scope, type_, expected in (
        ('mldr_kd_mm', 'CIFAR100', VerifiedCIFAR100),
        ('mmpretrain', 'CIFAR100', mmpretrain.datasets.CIFAR100),
        *((scope, 'mldr_kd_mm.CIFAR100', VerifiedCIFAR100) for scope in SCOPES),
        *((scope, 'mmpretrain.CIFAR100', mmpretrain.datasets.CIFAR100) for scope in SCOPES),
    ):
        assert type(build(package, 'DATASETS', scope, type_)) is expected, (scope, type_)


def test_every_registry_of_mmpretrains_has_a_child():
    for name, parent in MMPRETRAIN.items():
        ours = getattr(registry, name, None)
        assert parent.children.get('mldr_kd_mm') is ours is not None, name


@pytest.mark.parametrize(
    ('scope', 'prefix'),
    [pytest.param('mldr_kd_mm', '', marks=pytest.mark.slow), ('mmpretrain', 'mldr_kd_mm.')],
    ids=SCOPES,
)
def test_nobody_needs_to_import_the_package_first(scope, prefix):
    """This is the case in ``mim train`` and in mmpretrain's tools."""
    configs = {kind: CONFIGS[kind] | dict(type=prefix + kind) for kind in CONFIGS}
    script = f"""
import sys
from mmengine.registry import DATASETS, HOOKS, MODELS, init_default_scope
assert 'mldr_kd_mm' not in sys.modules
init_default_scope('{scope}')
built = [
    HOOKS.build({configs['TeacherAccuracyHook']}),
    MODELS.build({configs['Distiller']}),
    DATASETS.build({configs['CIFAR100']}),
]
print(*(type(thing).__module__ for thing in built))
"""
    run = subprocess.run([sys.executable, '-c', script], capture_output=True, text=True)
    assert run.returncode == 0, run.stderr
    assert run.stdout.splitlines()[-1].split() == [
        'mldr_kd_mm.engine.hooks.teacher_accuracy',
        'mldr_kd_mm.models.distillers.distiller',
        'mldr_kd_mm.datasets.cifar',
    ]
    assert 'Failed' not in run.stdout + run.stderr


class TestChildRegistry:
    @pytest.fixture
    def parent(self):
        return Registry('thing', scope='mmpretrain', locations=['json'])

    def test_registers_with_the_parent_under_every_name(self, parent):
        child = registry.ChildRegistry(parent)
        child.register_module(name=['One', 'Two'], module=int)
        child.register_module(module=str)
        assert parent.module_dict == child.module_dict == {'One': int, 'Two': int, 'str': str}

    def test_leaves_the_parent_its_own(self, parent):
        parent.register_module(name='One', module=int)
        child = registry.ChildRegistry(parent)
        child.register_module(name='One', module=float)
        assert parent.get('One') is int
        assert child.get('One') is float
        assert parent.get('mldr_kd_mm.One') is float

    def test_refuses_a_name_twice(self, parent):
        child = registry.ChildRegistry(parent)
        child.register_module(module=int)
        with pytest.raises(KeyError, match='int is already registered'):
            child.register_module(module=int)

"""The shipped configs, found by name in every way that a project of its own may take."""

import pytest
from mmengine.config import Config
from mmengine.hub import get_config

from mldr_kd_mm import ConfigError, config_path, list_configs
from mldr_kd_mm.apis.configs import CONFIGS

NAME = 'mldr/deit_to_mobilenet_c100.py'


def test_path_is_that_of_the_config():
    assert Config.fromfile(config_path(NAME)).model.neck.type == 'MSDFNeck'
    assert Config.fromfile(config_path('_base_/methods/kd.py')).method.losses[0].name == 'kd'


@pytest.mark.parametrize(
    ('name', 'message'),
    [
        ('mldr/deit_to_mobilnet_c100.py', f'did you mean {NAME} or '),
        ('mldr/deit_to_mobilenet_c100', f'did you mean {NAME} or '),
        ('zzz', 'no config of that name: see list_configs()'),
        ('mldr', 'no config of that name'),
        ('', 'no config of that name'),
        (None, r'config_path\(None\): there is no config'),
        ('../tools/train.py', 'no config of that name'),
    ],
)
def test_unknown_name(name, message):
    with pytest.raises(ConfigError, match=message.replace('()', r'\(\)')) as caught:
        config_path(name)
    assert '\n' not in str(caught.value)


def test_list_has_each_config_that_can_be_trained():
    trainable = {
        path.relative_to(CONFIGS).as_posix()
        for path in CONFIGS.rglob('*.py')
        if '_base_' not in path.parts and path.stem not in ('base', 'student')
    }
    assert len(list_configs()) == len(trainable) > 200
    assert set(list_configs()) == trainable


def test_list_by_pattern():
    assert NAME in list_configs('mldr/*')
    assert all(name.startswith('mldr/') for name in list_configs('mldr/*'))
    assert list_configs('*/deit_to_mobilenet_c100.py')[:2] == [
        'cc/deit_to_mobilenet_c100.py',
        'crd/deit_to_mobilenet_c100.py',
    ]
    assert list_configs('nothing') == []


@pytest.mark.parametrize(
    'base', [f"'mldr_kd_mm::{NAME}'", f"[__import__('mldr_kd_mm').config_path('{NAME}')]"]
)
def test_inherited(base, tmp_path):
    child = tmp_path / 'child.py'
    child.write_text(f'_base_ = {base}\nmodel = dict(student=dict(head=dict(num_classes=7)))\n')
    cfg = Config.fromfile(child)
    parent = Config.fromfile(config_path(NAME))
    assert cfg.model.student.head.pop('num_classes') == 7
    assert parent.model.student.head.pop('num_classes') == 100
    assert cfg.model.student.to_dict() == parent.model.student.to_dict()
    assert cfg.model.losses == parent.model.losses
    assert cfg.train_dataloader.dataset.type == 'mldr_kd_mm.VerifiedCIFAR100'


def test_by_mmengine_hub():
    assert get_config(f'mldr_kd_mm::{NAME}').model.type == 'Distiller'

"""Shipped configs: finding and inheriting them by name, and composing a pair with a method."""

import sys
from pathlib import Path

import pytest
from mmengine.config import Config
from mmengine.hub import get_config

from mldr_kd_mm import ConfigError, base_fields, config_path, list_configs
from mldr_kd_mm.apis.configs import CONFIGS, compose, load_config, read_config
from mldr_kd_mm.registry import DATASETS, MODELS

NAME = 'mldr/deit_to_mobilenet_c100.py'


def test_path_is_that_of_the_config():
    assert Config.fromfile(config_path(NAME)).model.neck.type == 'MSDFNeck'
    assert Config.fromfile(config_path('_base_/methods/kd.py')).method.losses[0].name == 'kd'


@pytest.mark.parametrize(
    ('name', 'message'),
    [
        ('mldr/deit_to_mobilnet_c100.py', f'did you mean {NAME} or '),
        ('mldr/deit_to_mobilenet_c100', f'did you mean {NAME} or '),
        ('zzz', r'no config of that name; list_configs\(\) returns'),
        ('mldr', 'no config of that name'),
        ('', 'no config of that name'),
        (None, r'config_path\(None\): there is no config'),
        ('../tools/train.py', 'no config of that name'),
    ],
)
def test_unknown_name(name, message):
    with pytest.raises(ConfigError, match=message) as caught:
        config_path(name)
    assert '\n' not in str(caught.value)


def test_list_by_pattern():
    assert NAME in list_configs('mldr/*')
    assert all(name.startswith('mldr/') for name in list_configs('mldr/*'))
    assert list_configs('*/deit_to_mobilenet_c100.py') == [
        'mldr/deit_to_mobilenet_c100.py',
        'pairs/deit_to_mobilenet_c100.py',
    ]
    assert list_configs('_base_/*') == []


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


PAIR = 'pairs/deit_to_mobilenet_c100_32px.py'


def test_pair_and_method_inherited_by_two_bases(tmp_path):
    child = tmp_path / 'child.py'
    bases = [f'mldr_kd_mm::{PAIR}', 'mldr_kd_mm::_base_/methods/dist.py']
    child.write_text(f'_base_ = {bases}\nmodel = _base_.method\n')
    inherited = Config.fromfile(child)
    for field in ('method', 'search_space'):
        inherited.pop(field)
    composed = compose(Config.fromfile(config_path(PAIR)), 'dist')
    assert without_scopes(inherited.to_dict()) == composed.to_dict()


def without_scopes(value):
    """Remove the ``_scope_`` that mmengine adds to configs inherited by name."""
    if isinstance(value, dict):
        return {k: without_scopes(v) for k, v in value.items() if k != '_scope_'}
    return [without_scopes(item) for item in value] if isinstance(value, list) else value


class TestBaseFields:
    def test_of_a_shipped_config(self):
        cfg = Config.fromfile(config_path(NAME)).to_dict()
        assert base_fields(NAME) == cfg
        assert base_fields('_base_/datasets/cifar100-20cls_32.py')['labels'][:2] == [0, 5]

    def test_the_last_config_replaces_fields_whole(self):
        data = '_base_/datasets/folder_224.py'
        fields = base_fields(PAIR, data)
        folder = Config.fromfile(config_path(data)).to_dict()
        assert {name: fields[name] for name in folder} == folder
        assert 'split' not in fields['train_dataloader']['dataset']
        assert fields['model'] == base_fields(PAIR)['model']

    @pytest.mark.parametrize(('name', 'hint'), [(NAME[:-4], 'did you mean'), ('a/b', 'no config')])
    def test_unknown(self, name, hint):
        with pytest.raises(ConfigError, match=hint):
            base_fields(PAIR, name)

    def test_in_a_lazy_config(self, tmp_path):
        """With ``read_base`` for the project's own configs, and changes of what was added."""
        (tmp_path / 'mine.py').write_text('train_cfg = dict(by_epoch=True, max_epochs=3)\n')
        (tmp_path / 'child.py').write_text(
            'from mmengine.config import read_base\n'
            'from mldr_kd_mm import KDLoss\n'
            'with read_base():\n    from .mine import *\n'
            f"globals().update(__import__('mldr_kd_mm').base_fields('{NAME}', "
            "__file__.replace('child', 'mine')))\n"
            "model['losses'] = [dict(loss=dict(type=KDLoss))]\n"
            "model['student'].update(init_cfg=None)\n"
        )
        cfg = load_config(str(tmp_path / 'child.py'))
        assert cfg.train_cfg == dict(by_epoch=True, max_epochs=3)
        wanted = Config.fromfile(config_path(NAME))
        assert cfg.train_dataloader.to_dict() == wanted.train_dataloader.to_dict()
        assert cfg.model.teacher.to_dict() == wanted.model.teacher.to_dict()
        assert MODELS.build(cfg.model.losses[0].loss).temperature == 1.0

    def test_a_lazy_config_imports_its_modules(self, tmp_path, monkeypatch):
        monkeypatch.syspath_prepend(tmp_path)
        (tmp_path / 'of_a_lazy_config.py').write_text('raise SystemError("imported")')
        path = tmp_path / 'lazy.py'
        path.write_text(
            "from mldr_kd_mm import KDLoss\ncustom_imports = dict(imports=['of_a_lazy_config'])\n"
        )
        with pytest.raises(ConfigError, match='imported'):
            read_config(path)


EXAMPLES = Path(__file__).parents[2] / 'examples/downstream_project'


@pytest.mark.parametrize('name', ['dist_resnet', 'mldr_resnet', 'mldr_mobilenet'])
def test_example_project(name, monkeypatch):
    """Nothing of CIFAR-100 is left beside the project's own data."""
    monkeypatch.syspath_prepend(EXAMPLES)
    try:
        cfg = read_config(EXAMPLES / f'configs/{name}.py')
        data = Config.fromfile(EXAMPLES / 'configs/shapes.py').to_dict()
        assert {field: cfg.to_dict()[field] for field in data} == data
        assert cfg.train_cfg.max_epochs == 2 and cfg.train_cfg.by_epoch
        model = MODELS.build({**cfg.model, 'data_preprocessor': cfg.data_preprocessor})
        assert [len(entry.student) for entry in model.losses] == [1 if 'dist' in name else 3]
        assert len(DATASETS.build(cfg.val_dataloader.dataset)) == 128
    finally:
        for registry in (DATASETS, DATASETS.parent):
            registry.module_dict.pop('Shapes', None)
        for module in [module for module in sys.modules if module.startswith('shapes_kd')]:
            del sys.modules[module]


def test_bases_that_set_the_same_fields(tmp_path):
    child = tmp_path / 'child.py'
    bases = [f'mldr_kd_mm::{PAIR}', 'mldr_kd_mm::_base_/datasets/folder_224.py']
    child.write_text(f'_base_ = {bases}\n')
    with pytest.raises(ConfigError) as caught:
        load_config(str(child))
    message = str(caught.value)
    assert message.startswith(f'{child}: two of its bases set ') and '\n' not in message
    assert 'train_dataloader' in message and message.endswith('by FIELD = dict(_delete_=True, ...)')


def test_default_work_dir():
    assert load_config(config_path(NAME)).work_dir == 'work_dirs/deit_to_mobilenet_c100'
    pair = config_path('pairs/deit_to_mobilenet_c100.py')
    assert load_config(pair, 'dist').work_dir == 'work_dirs/deit_to_mobilenet_c100_dist'
    alone = load_config(pair, 'scratch')
    assert alone.work_dir == 'work_dirs/deit_to_mobilenet_c100_scratch'
    assert alone.model.type == 'ImageClassifier'


def test_a_student_alone_is_preprocessed_as_beside_its_teacher():
    shared = dict(num_classes=100, mean=[1.0] * 3)
    pair = Config.fromfile(config_path(PAIR))
    assert 'data_preprocessor' not in compose(pair, 'scratch').model, "the Runner adds the config's"
    pair.data_preprocessor = shared
    pair.model.student.data_preprocessor = dict(std=[2.0] * 3)
    assert compose(pair, 'scratch').model.data_preprocessor == shared | dict(std=[2.0] * 3)
    pair.model.data_preprocessor = dict(mean=[3.0] * 3)
    expected = dict(mean=[3.0] * 3, std=[2.0] * 3)
    assert compose(pair, 'scratch').model.data_preprocessor == expected


def test_a_method_of_the_current_directory_is_found_by_name_and_by_path(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    path = tmp_path / 'configs/_base_/methods/mine.py'
    path.parent.mkdir(parents=True)
    path.write_text(
        "method = dict(losses=[dict(loss=dict(type='KDLoss'), weight=3.0)])\n"
        "custom_imports = dict(imports=['colorsys'])\n"
        "custom_hooks = [dict(type='EMAHook')]\n"
    )
    pair = Config.fromfile(config_path(PAIR))
    for method in ('mine', str(path)):
        cfg = compose(pair, method)
        assert cfg.model.losses[0].weight == 3.0
        assert cfg.custom_imports == dict(imports=['colorsys'])
        assert cfg.custom_hooks == [dict(type='EMAHook')]
    assert 'losses' not in pair.model
    # Those of the pair stay.
    pair.custom_hooks, pair.custom_imports = [dict(type='MyHook')], dict(imports='calendar')
    cfg = compose(pair, 'mine')
    assert cfg.custom_hooks == [dict(type='MyHook'), dict(type='EMAHook')]
    assert cfg.custom_imports == dict(imports=['calendar', 'colorsys'])


def test_crd_remembers_the_images_that_there_are():
    (entry,) = compose(Config.fromfile(config_path(PAIR)), 'crd', num_samples=100).model.losses
    assert (entry.loss.num_samples, entry.loss.negatives) == (100, 99)


def test_mistakes_of_a_composition(tmp_path, subtests):
    no_method = tmp_path / 'no_method.py'
    no_method.write_text('losses = []')
    cases = {
        (PAIR, None): r'a pair needs a method; add --method mldr',
        (PAIR, 'fitent'): r"method='fitent': there is no .*fitent.py; did you mean fitnet",
        (PAIR, 'xyz'): r"method='xyz': .* give the path of a file, or one of cc, crd",
        (PAIR, 'lost.py'): r"method='lost.py': there is no such file",
        (PAIR, str(no_method)): r'no_method.py.: must have method = dict\(losses=',
        (NAME, 'dist'): r'already has losses; give its pair, .*pairs/deit_to_mobilenet_c100.py',
        ('scratch/mobilenet_c100.py', 'dist'): r'its model has no teacher; a method needs a pair',
    }
    for (name, method), message in cases.items():
        with subtests.test(message), pytest.raises(ConfigError, match=message) as caught:
            load_config(config_path(name), method)
        assert '\n' not in str(caught.value)


def test_a_config_that_does_not_exist():
    path = config_path(PAIR).replace('c100', 'c10')
    with pytest.raises(ConfigError, match='there is no such file; did you mean deit_to_'):
        load_config(path, 'kd')


@pytest.mark.parametrize('method', ['dist', 'scratch'])
def test_no_method_is_mixed_with_another(method):
    whole = Config.fromfile(config_path('quickstart/mldr.py'))
    with pytest.raises(ConfigError, match=r"mldr\.py': already has losses; leave the method out"):
        compose(whole, method)


def test_a_config_that_has_moved(monkeypatch, subtests):
    monkeypatch.chdir(CONFIGS.parent)
    moved = {
        'configs/kd/deit_to_mobilenet_c100.py': 'pairs/deit_to_mobilenet_c100.py --method kd',
        'configs/_base_/pairs/vit_to_resnet18_c20.py': 'pairs/vit_to_resnet18_cifar100-20cls.py',
        'configs/mldr/convnext-tiny_to_deit-tiny_tiny.py': (
            'mldr/convnext-tiny_to_deit-tiny_tinyimagenet.py'
        ),
        'configs/teachers/vit-small_tiny_64px.py': 'teachers/vit-small_tinyimagenet_64px.py',
    }
    for old, new in moved.items():
        with subtests.test(old), pytest.raises(ConfigError) as caught:
            load_config(old)
        assert str(caught.value).endswith(f'this config has moved; use configs/{new}')


def test_number_of_samples_of_a_loss_with_default_arguments():
    method = dict(losses=[dict(loss=dict(type='CRDLoss'), student='feature', teacher='feature')])
    pair = read_config(config_path('pairs/vit_to_resnet18_cifar100-20cls.py'))
    loss = compose(pair, method, num_samples=100).model.losses[0].loss
    assert (loss.num_samples, loss.negatives) == (100, 99)

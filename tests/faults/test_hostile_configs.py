"""Configs of runs and checkpoints that would run code, given to every command that reads them.

The code creates a file, the canary. Each config is first shown to do so when mmengine builds it.
"""

from __future__ import annotations

import copy
import os
import pickle
import re
import shutil
import sys
from contextlib import suppress
from pathlib import Path

import pytest
import torch
from helpers import mldr, resnet, train, vit
from mmengine.runner.checkpoint import CheckpointLoader, load_from_local

from mldr_kd_mm import cli
from mldr_kd_mm.apis.configs import read_config
from mldr_kd_mm.apis.export import RebuiltStudent
from mldr_kd_mm.apis.model_card import _timm_lines
from mldr_kd_mm.apis.run_record import escaped
from mldr_kd_mm.evaluation.logged_run import LoggedRun
from mldr_kd_mm.registry import DATASETS, MODELS, TRANSFORMS
from mldr_kd_mm.utils.errors import ConfigError
from mldr_kd_mm.utils.safe_config import parse_config
from mldr_kd_mm.utils.stored_config import check_types, registered_names_only, without_weights
from mldr_kd_mm.visualization.report import _look_at
from mldr_kd_mm.visualization.series import Entry

CONFIGS = Path(__file__).parents[2] / 'configs'
EVIL_MODULE = """
from pathlib import Path

Path(__file__).with_name('canary').touch()
ResNet = VisionTransformer = dict
"""


@pytest.fixture
def canary(tmp_path, monkeypatch):
    """Path of a file that must not exist after the test; importing ``evilmod`` creates it."""
    (tmp_path / 'evilmod').mkdir()
    (tmp_path / 'evilmod/__init__.py').write_text(EVIL_MODULE)
    (tmp_path / 'evilmod/registry.py').touch()
    monkeypatch.syspath_prepend(tmp_path)
    yield tmp_path / 'evilmod/canary'
    for name in [name for name in sys.modules if name.partition('.')[0] == 'evilmod']:
        del sys.modules[name]


def hostile_parts(canary: Path) -> list[dict]:
    """Return parts of a config that create the canary if mmengine builds them."""
    command = ['touch', str(canary)]
    return [
        dict(type='subprocess.check_call', args=command),
        dict(type='os.system', command=' '.join(command)),
        dict(type='builtins.exec', source=f'open({str(canary)!r}, "w")'),
        dict(type='pathlib.Path.touch', self=canary),
        dict(type='evilmod.ResNet'),
        dict(type='evilmod'),
        dict(type='ResNet', _scope_='evilmod'),
        dict(type='mmpretrain.evilmod.ResNet'),
        dict(type='mldr_kd_mm.os.system', command=' '.join(command)),
        dict(type='mmengine.fileio.io.os.system', command=' '.join(command)),
        dict(type='mmengine.Fault', path=str(canary)),
        dict(type=['os.system'], command=' '.join(command)),
    ]


def places(part: dict) -> dict[str, dict]:
    """Return the changes that put a part at every depth of a run's config."""
    vit_of, resnet_of = vit(), resnet()
    student = {
        'student': part,
        'backbone': resnet_of | dict(backbone=part),
        'head': resnet_of | dict(head=part),
        'neck': resnet_of | dict(neck=part),
        'loss': resnet_of | dict(head=resnet_of['head'] | dict(loss=part)),
        'norm_cfg': resnet_of | dict(backbone=resnet_of['backbone'] | dict(norm_cfg=part)),
        'student_preprocessor': resnet_of | dict(data_preprocessor=part),
        'tuple': resnet_of | dict(backbone=resnet_of['backbone'] | dict(odd=((0, [part]),))),
    }
    model = {name: dict(student=value) for name, value in student.items()} | {
        'teacher': dict(teacher=part),
        'teacher_backbone': dict(teacher=vit_of | dict(backbone=part)),
        'init_cfg': dict(teacher=vit_of | dict(init_cfg=[part])),
        'losses': dict(losses=[dict(loss=part, student='logits', teacher='logits')]),
        'msdf': dict(neck=part),
        'data_preprocessor': dict(data_preprocessor=part),
        'taps': dict(student_taps=part),
    }
    dataset = {
        'dataset': part,
        'transform': dict(type='Digits', split='test', pipeline=[part]),
        'nested': dict(type='RepeatDataset', times=1, dataset=part),
        'random': dict(
            type='Digits', pipeline=[dict(type='RandomApply', transforms=(part,), prob=1.0)]
        ),
    }
    return {name: dict(model=value) for name, value in model.items()} | {
        name: dict(val_dataloader=dict(dataset=value)) for name, value in dataset.items()
    }


@pytest.fixture(scope='module')
def run_dir(tmp_path_factory):
    """Return the work directory of a short run."""
    folder = tmp_path_factory.mktemp('runs') / 'run'
    hooks = dict(checkpoint=dict(type='AtomicCheckpointHook', interval=1))
    train(mldr(teacher=vit(depth=2)), folder, default_hooks=hooks)
    return folder


@pytest.fixture
def stored(run_dir, tmp_path):
    """Return a copy of the run, and a function that changes its stored config."""
    folder = shutil.copytree(run_dir, tmp_path / 'run')
    (path,) = folder.glob('*/vis_data/config.py')
    original = parse_config(path.read_text())
    checkpoint = torch.load(folder / 'epoch_1.pth', weights_only=False)

    def change(changes: dict, with_checkpoint: bool = False) -> Path:
        config = copy.deepcopy(original)
        for name, value in changes.items():
            config[name] = config.get(name, {}) | value if isinstance(value, dict) else value
        text = ''.join(f'{name} = {value!r}\n' for name, value in config.items())
        path.write_text(text)
        if with_checkpoint:
            checkpoint['meta']['cfg'] = text
            torch.save(checkpoint, folder / 'epoch_1.pth')
        return folder

    return change


def test_each_part_runs_its_code_if_it_is_trusted(canary):
    """So the tests below would see a canary."""
    count = 0
    for part in hostile_parts(canary):
        try:
            MODELS.build(part)
        except Exception:
            pass
        count += canary.exists()
        canary.unlink(missing_ok=True)
        for name in [name for name in sys.modules if name.partition('.')[0] == 'evilmod']:
            del sys.modules[name]
    assert count >= 7


def test_no_place_of_a_config_is_built(canary, stored):
    """Every part at some places and some parts at every place, read as for a report."""
    parts = [
        {key: str(value) if isinstance(value, Path) else value for key, value in part.items()}
        for part in hostile_parts(canary)
    ]
    cases = [(part, place) for place in places({}) for part in (parts[0], parts[6])]
    cases += [(part, place) for place in ('teacher', 'backbone', 'random') for part in parts]
    for part, place in cases:
        entry = Entry(LoggedRun.read(stored(places(part)[place]), 'run'))
        _look_at(entry, 4, None, None)
        assert entry.seen is None and entry.note, (place, part)
        if part['type'] != 'mmpretrain.evilmod.ResNet':  # becomes mmpretrain's own ResNet
            assert 'is not registered' in entry.note, (place, part, entry.note)
        assert not canary.exists(), (place, part)
        assert 'evilmod' not in sys.modules, (place, part)


@pytest.mark.parametrize('name', ['report', 'export', 'info', 'resume'])
def test_no_command_runs_a_stored_config(name, canary, stored, tmp_path, capsys, monkeypatch):
    monkeypatch.setattr('mldr_kd_mm.visualization.report.SECTIONS', ())  # drawing takes seconds
    evil = dict(type='evilmod.ResNet')
    run = dict(type='subprocess.check_call', args=['touch', str(canary)])
    for number, changes in enumerate(
        (
            dict(model=dict(student=resnet() | dict(backbone=evil))),
            dict(model=run),
            dict(custom_imports=dict(imports=['evilmod'], allow_failed_imports=False)),
            dict(custom_imports=dict(imports='evilmod'), default_scope='evilmod'),
            dict(custom_hooks=[run, evil], val_evaluator=[run], visualizer=run, runner_type='evil'),
            dict(model=dict(student=dict(type='ImageClassifier', backbone=run))),
        )
    ):
        folder = stored(changes, with_checkpoint=True)
        arguments = {
            'report': ['report', str(folder), '--samples', '4'],
            'export': ['export', str(folder / 'epoch_1.pth'), str(tmp_path / f'{number}.pth')],
            'info': ['info', str(folder / 'epoch_1.pth')],
        }
        if name == 'resume':
            hooks = dict(
                checkpoint=dict(type='AtomicCheckpointHook', interval=1),
                exact_resume=dict(type='ExactResumeHook'),
            )
            with suppress(ConfigError):  # another model is refused
                train(
                    mldr(teacher=vit(depth=2)),
                    folder,
                    default_hooks=hooks,
                    max_epochs=2,
                    resume=True,
                )
        else:
            if name == 'report':
                arguments[name] += ['--out', str(tmp_path / 'out')]
            cli.main(arguments[name])
        assert not canary.exists(), changes
        assert 'evilmod' not in sys.modules, changes


@pytest.mark.parametrize(
    ('part', 'name', 'value'),
    [
        (dict(type='TIMMBackbone', model_name='resnet10t'), 'norm_layer', 'evilmod.ResNet'),
        (resnet()['backbone'], 'conv_cfg', dict(type='evilmod.ResNet')),
        (
            dict(type='mmpretrain.VisionTransformer', arch='deit-t', img_size=32, patch_size=8),
            'patch_cfg',
            dict(conv_type='evilmod.ResNet'),
        ),
        (resnet()['backbone'], '_scope_', 'evilmod'),
    ],
)
def test_names_that_are_no_types(part, name, value, canary):
    """Other strings than a type reach the registries."""
    MODELS.build(dict(part))
    with suppress(Exception), registered_names_only():
        MODELS.build(copy.deepcopy(part | {name: value}))
    assert not canary.exists()


class Touch:
    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return Path.touch, (Path(self.path),)


def test_weights_that_are_programs(canary, tmp_path, monkeypatch):
    """Models read weights while they are built, with loaders that may execute the file."""
    monkeypatch.setenv('TORCH_FORCE_NO_WEIGHTS_ONLY_LOAD', '1')  # usual with mmengine 0.10.7
    # Reports of other tests may have replaced it.
    monkeypatch.setattr(CheckpointLoader, '_schemes', {'': load_from_local})
    file = tmp_path / 'weights.pth'
    torch.save(Touch(str(canary)), file)
    clip = dict(type='CLIPGenerator', tokenizer_path=str(file))
    with suppress(Exception):
        MODELS.build(dict(clip))
    assert canary.exists(), 'mmengine runs it'
    canary.unlink()
    timm = dict(type='TIMMBackbone', model_name='resnet10t', checkpoint_path=str(file))
    for part in (clip, timm, resnet() | dict(neck=clip)):
        with suppress(Exception), registered_names_only():
            MODELS.build(check_types(part, 'model'))
        assert not canary.exists(), part
    # The loader of timm 1.0.12 asks for this.
    with pytest.raises(pickle.UnpicklingError), registered_names_only():
        torch.load(file, weights_only=False)
    assert os.environ['TORCH_FORCE_NO_WEIGHTS_ONLY_LOAD'] == '1'
    assert 'TORCH_FORCE_WEIGHTS_ONLY_LOAD' not in os.environ


class TestDataSets:
    @pytest.mark.parametrize('suffix', ['pkl', 'pickle', 'yaml', 'yml'])
    def test_annotations_that_are_programs(self, suffix, canary, tmp_path):
        file = tmp_path / f'annotations.{suffix}'
        touch = f'!!python/object/apply:os.system ["touch {canary}"]'
        as_pickle = pickle.dumps(Touch(str(canary)))
        file.write_bytes(touch.encode() if suffix.startswith('y') else as_pickle)
        dataset = dict(type='BaseDataset', ann_file=str(file), lazy_init=False)
        with suppress(Exception):
            DATASETS.build(dict(dataset))
        assert canary.exists(), 'mmengine runs it'
        canary.unlink()
        with pytest.raises(TypeError, match='Unsupported format'), registered_names_only():
            DATASETS.build(check_types(dataset, 'dataset'))
        assert not canary.exists()

    def test_dtype_is_no_expression(self, canary):
        code = f'float32 if open({str(canary)!r}, "w") else 0'
        config = [dict(type='torchvision/ConvertImageDtype', dtype=code)]
        TRANSFORMS.build(dict(config[0]))
        assert canary.exists(), 'mmpretrain evaluates it'
        canary.unlink()
        with pytest.raises(ConfigError, match=r"pipeline\.0\.dtype='float32 if .*must be a name"):
            check_types(config, 'pipeline')
        assert check_types([config[0] | dict(dtype='float32')], 'pipeline')

    @pytest.mark.parametrize('field', ['backend_args', 'file_client_args'])
    def test_file_backends_import_nothing(self, field, canary, tmp_path, monkeypatch):
        (tmp_path / 'any').mkdir()
        (tmp_path / 'any/mc.py').write_text(f'open({str(canary)!r}, "w")')
        monkeypatch.setattr(sys, 'path', list(sys.path))
        folder = dict(server_list_cfg='', client_cfg='', sys_path=str(tmp_path / 'any'))
        load = dict(type='LoadImageFromFile')
        evil = {field: dict(backend='memcached', **folder)}
        with suppress(Exception):
            TRANSFORMS.build(load | evil)(dict(img_path='a.png'))
        sys.modules.pop('mc', None)
        assert canary.exists(), 'mmengine imports it'
        for value in (evil[field], folder, 'memcached', ['local']):
            with pytest.raises(ConfigError, match=rf'pipeline\.0\.{field}: must be None or'):
                check_types((load | {field: value},), 'pipeline')
        for value in (None, {}, dict(backend='local'), dict(backend='disk')):
            assert check_types(load | {field: value}, 'pipeline')[field] == value

    @pytest.mark.parametrize('kind', ['mmpretrain.CIFAR100', 'VerifiedCIFAR100', 'MNIST'])
    def test_nothing_is_downloaded(self, kind):
        checked = check_types((dict(dataset=dict(type=kind, download=True)),), 'dataset')
        assert checked[0]['dataset']['download'] is False
        assert 'download' not in check_types(dict(type='Digits'), 'dataset')


def test_shipped_parts_are_built():
    files = [file for name in ('models', 'methods') for file in CONFIGS.glob(f'_base_/{name}/*.py')]
    for file in files:
        config = read_config(file).to_dict()
        assert check_types(config, file.stem) == config, file
    for file in CONFIGS.glob('_base_/datasets/*.py'):
        config = read_config(file).to_dict()
        for loader in ('train_dataloader', 'val_dataloader'):
            if dataset := config.get(loader, {}).get('dataset'):
                checked = check_types(dataset, file.stem)
                assert checked == dataset | ({'download': False} if 'download' in checked else {})


def test_dotted_path_of_a_registered_class(monkeypatch):
    """A lazy config stores them; the class is found without an import."""
    spellings = {
        'mmpretrain.models.classifiers.ImageClassifier': 'mmpretrain.ImageClassifier',
        'mmpretrain.ImageClassifier': 'mmpretrain.ImageClassifier',
        'mldr_kd_mm.models.Distiller': 'mldr_kd_mm.Distiller',
        'mldr_kd_mm.models.losses.DFRALoss': 'mldr_kd_mm.DFRALoss',
    }
    for kind, name in spellings.items():
        found = check_types(dict(type=kind), 'model')['type']
        assert MODELS.get(found) is MODELS.get(name), kind
    assert check_types(dict(type='TruncNormal', std=0.1), 'init_cfg')
    # Its constructor unpickles a file.
    ram = type('Ram', (), dict(__module__='mmpretrain.models.multimodal.ram.ram'))
    monkeypatch.setitem(MODELS.module_dict, 'RAM', ram)
    monkeypatch.setitem(MODELS.parent.module_dict, 'RAM', ram)
    for kind in ('torch.ResNet', 'other.ImageClassifier', 'mmpretrain.models.os', 'RAM', '', None):
        with pytest.raises(ConfigError, match='model.type=.*is not registered'):
            check_types(dict(type=kind), 'model')


def test_weights_that_are_replaced_are_not_read():
    model = dict(
        type='ImageClassifier',
        pretrained='http://example.org/a.pth',
        init_cfg=dict(type='Pretrained', checkpoint='b.pth'),
        backbone=dict(type='TIMMBackbone', pretrained=True, checkpoint_path='c.pth'),
        neck=[dict(type='GlobalAveragePooling', init_cfg=[dict(type='Pretrained')])],
        teacher_checkpoint='http://example.org/d.pth',
        tokenizer_path='http://example.org/e.pth',
    )
    assert without_weights(model) == dict(
        type='ImageClassifier',
        backbone=dict(type='TIMMBackbone'),
        neck=[dict(type='GlobalAveragePooling')],
    )
    remote = dict(type='HuggingFaceClassifier', model_name='a/b')
    named = remote | dict(trust_remote_code=True, cache_dir='/elsewhere')
    assert check_types(named, 'model') == check_types(remote, 'model')


def test_nothing_is_compiled():
    """torch.compile runs the compiler that its options name."""
    options = dict(options={'cpp.cxx': ('/tmp/program',)})
    parts = dict.fromkeys(('teacher_compile', 'student_compile', 'losses_compile'), options)
    model = dict(type='Distiller', student=dict(type='Distiller', **parts), **parts)
    plain = dict(type='Distiller', student=dict(type='Distiller'))
    assert check_types(model, 'model') == plain


@pytest.mark.parametrize('command', ['report', 'export'])
def test_imports_are_named_and_need_an_option(command, stored, tmp_path, monkeypatch, capsys):
    module = f'my_models_{command}'
    name = f'MyNet{command}'
    (tmp_path / f'{module}.py').write_text(
        'from mmpretrain.models import ResNet_CIFAR\n'
        'from mldr_kd_mm.registry import MODELS\n'
        f'MODELS.register_module(name={name!r}, module=type({name!r}, (ResNet_CIFAR,), {{}}))\n'
    )
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setattr('mldr_kd_mm.visualization.report.SECTIONS', ())
    student = resnet()
    student['backbone']['type'] = name
    imports = dict(custom_imports=dict(imports=[module]))
    folder = stored(imports | dict(model=dict(student=student)), with_checkpoint=True)

    def run(*options) -> str:
        out = tmp_path / f'out{len(options)}'
        if command == 'report':
            cli.main(['report', str(folder), '--samples', '4', '--out', str(out), *options])
            return (out / 'report.html').read_text()
        cli.main(['export', str(folder / 'epoch_1.pth'), f'{out}.pth', *options])
        return capsys.readouterr().out

    assert f'if you trust them, add --imports {module}' in run()
    assert module not in sys.modules
    assert 'is not registered' not in run('--imports', module)
    with pytest.raises(SystemExit):
        run('--imports', 'no_such_module')
    assert '--imports no_such_module: cannot be imported' in capsys.readouterr().err


@pytest.mark.parametrize('name', ['config.yaml', 'config.yml', 'config.py'])
def test_yaml_with_python_tags(name, canary, tmp_path):
    base = tmp_path / 'base.yaml'
    path = tmp_path / name
    text = f'model: !!python/object/apply:os.system ["touch {canary}"]\n'
    (base if name == 'config.py' else path).write_text(text)
    if name == 'config.py':
        path.write_text("_base_ = 'base.yaml'\n")
    with pytest.raises(ConfigError, match=r'python/object/apply:os\.system'):
        read_config(path)
    assert not canary.exists()
    path.with_suffix('.yml').write_text('model: {type: Distiller, sizes: [1, 2]}\n')
    assert read_config(path.with_suffix('.yml')).model.sizes == [1, 2]


def test_model_card_has_no_markup_of_the_run(stored, run_dir, tmp_path):
    evil = '<img src=x onerror=alert(1)> [x](javascript:alert(1)) ![y](http://e.org) `</code>'
    folder = stored(
        dict(
            model=dict(
                losses=[dict(loss=dict(type=evil), name=evil, student=[evil], teacher=evil)],
                teacher=dict(type=evil, model_name=evil),
            ),
            train_dataloader=dict(dataset=dict(type=evil)),
            train_cfg=dict(max_epochs=evil),
        )
    )
    (config,) = folder.glob('*/vis_data/config.py')
    content = torch.load(folder / 'epoch_1.pth', weights_only=False)
    content['meta'] |= dict(
        cfg=config.read_text(),
        experiment_name=evil,
        epoch=evil,
        time=evil,
        seed=evil,
        mmengine_version=evil,
        dataset_meta=dict(classes=[evil, 'R&B_singer']),
        steps=dict(batch_size=evil, processes=evil),
    )
    content['message_hub']['runtime_info'] |= dict(last_validated_epoch=evil, best_score=evil)
    torch.save(content, folder / 'epoch_1.pth')
    cli.main(['export', str(folder / 'epoch_1.pth'), str(tmp_path / 'student.pth')])
    text = (tmp_path / 'student.md').read_text()
    prose = re.sub('```.*?```', '', text, flags=re.DOTALL)
    prose = re.sub('`[^`\n]*`', '', prose)
    assert 'onerror' in prose and 'javascript' in prose, 'the text is still there'
    assert not re.search('<[a-z/!]', prose)
    assert not re.search(r'(?<!\\)[\[\]]', re.sub(r'(mean|std) \[.*?\]', '', prose))
    assert '`R&B_singer`' in text


def test_code_of_a_model_card_has_names_and_literals_only():
    code = 'a=__import__("os").system("x"), b'
    config = dict(type='TimmClassifier', model_name='x"\n', drop_rate=0.1) | {code: 1, '\n```': 2}
    assert _timm_lines(RebuiltStudent(None, config, (3, 8, 8), 2, None), 'a.pth')[3:-1] == [
        'model = timm.create_model(',
        "    'x\"\\n',",
        '    drop_rate=0.1,',
        "    checkpoint_path='a.pth',",
    ]


def test_text_is_escaped():
    assert escaped('a-b_c (d), 1.5 %') == 'a-b_c (d), 1.5 %'
    assert escaped(r'\[x](javascript:y) <b>') == r'\\\[x\](javascript:y) &lt;b&gt;'
    assert escaped('a\n# b\u2028`c') == "a# b'c"

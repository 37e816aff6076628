"""Checkpoints: every kind that users have is read, and none runs code."""

from __future__ import annotations

import os
import pathlib
import pickle
import subprocess
import sys
from argparse import Namespace

import pytest
import torch
from helpers import resnet, train
from mmengine.logging import HistoryBuffer
from safetensors.torch import save_file
from torch.testing import assert_close

from mldr_kd_mm import ConfigError
from mldr_kd_mm.checkpoint import load_checkpoint, read_weights
from mldr_kd_mm.registry import MODELS

WEIGHTS = {'a.weight': torch.arange(6.0).reshape(2, 3), 'a.bias': torch.ones(2, dtype=torch.int64)}


class Calls:
    """Pickles to a call of ``function``."""

    def __init__(self, function, *args):
        self.call = function, args

    def __reduce__(self):
        return self.call


def tensors_of(path, field='checkpoint'):
    return read_weights(path, field).tensors


def save(tmp_path, content, name='weights.pth', **kwargs) -> str:
    path = tmp_path / name
    torch.save(content, path, **kwargs)
    return str(path)


def refuses(load, path: str) -> str:
    with pytest.raises(ConfigError) as caught:
        load(path, 'teacher_checkpoint')
    message = str(caught.value)
    assert message.startswith(f'teacher_checkpoint={path!r}: ')
    assert message.isprintable()  # one line, and no escape codes of a terminal
    return message


@pytest.mark.parametrize('legacy', [False, True], ids=['zip', 'legacy'])
@pytest.mark.parametrize(
    'content',
    [
        WEIGHTS,
        dict(state_dict=WEIGHTS),
        dict(state_dict=WEIGHTS, meta=dict(epoch=3, seed=None), optimizer=dict(lr=[0.1])),
    ],
    ids=['bare', 'wrapped', 'with company'],
)
def test_reads_a_state_dict(tmp_path, content, legacy):
    path = save(tmp_path, content, _use_new_zipfile_serialization=not legacy)
    assert_close(tensors_of(path), WEIGHTS, rtol=0, atol=0)
    assert load_checkpoint(path).keys() == content.keys()


def test_reads_the_state_dict_of_a_module(tmp_path):
    """An OrderedDict with metadata, of parameters and buffers."""
    expected = torch.nn.BatchNorm1d(3).state_dict()
    assert_close(tensors_of(save(tmp_path, expected)), dict(expected), rtol=0, atol=0)


def test_reads_safetensors(tmp_path):
    path = str(tmp_path / 'weights.safetensors')
    save_file(WEIGHTS, path)
    assert_close(tensors_of(path), WEIGHTS, rtol=0, atol=0)


@pytest.mark.parametrize('name', ['weights.pth', 'weights.pth.tar', 'weights.safetensors'])
def test_reads_a_url(tmp_path, monkeypatch, name):
    monkeypatch.setenv('TORCH_HOME', str(tmp_path / 'cache'))
    (save_file if name.endswith('.safetensors') else torch.save)(WEIGHTS, tmp_path / name)
    url = (tmp_path / name).as_uri()
    assert_close(tensors_of(url), WEIGHTS, rtol=0, atol=0)


def test_urls_that_end_alike(tmp_path, monkeypatch):
    monkeypatch.setenv('TORCH_HOME', str(tmp_path / 'cache'))
    for run, value in (('first', 1.0), ('second', 2.0)):
        (tmp_path / run).mkdir()
        path = tmp_path / run / 'epoch_300.pth'
        torch.save({'weight': torch.tensor(value)}, path)
        assert tensors_of(path.as_uri())['weight'] == value


def test_reads_what_the_runner_wrote(tmp_path):
    """Whatever mmengine logs, its message hub, optimizer and schedules are in the file too."""
    schedule = [dict(type='CosineAnnealingLR', T_max=1)]
    runner = train(resnet(), tmp_path, param_scheduler=schedule)
    path = str(tmp_path / 'epoch_1.pth')
    assert_close(tensors_of(path), dict(runner.model.state_dict()), rtol=0, atol=0)

    everything = torch.load(path, weights_only=False)
    assert isinstance(everything['message_hub']['log_scalars']['train/loss'], HistoryBuffer)
    checkpoint = load_checkpoint(path)
    assert checkpoint.keys() == everything.keys() > {'message_hub', 'optimizer', 'param_schedulers'}
    assert checkpoint['meta']['epoch'] == 1
    assert checkpoint['optimizer']['param_groups'][0]['lr'] == 0.01
    MODELS.build(resnet()).load_state_dict(tensors_of(path))


PLACES = ['state_dict_ema', 'state_dict', 'model', 'model_state_dict', 'module', 'model_ema']


class TestPlaces:
    @pytest.mark.parametrize('count', range(1, len(PLACES) + 1))
    def test_the_first_of_several_is_read(self, tmp_path, count):
        places = PLACES[-count:]
        others = {place: {'other': torch.zeros(1)} for place in places[1:]}
        # In the file, the order is another.
        path = save(tmp_path, dict(epoch=3) | others | {places[0]: WEIGHTS})
        weights, notes = read_weights(path)
        assert_close(weights, WEIGHTS, rtol=0, atol=0)
        assert notes == (() if places[0] == 'state_dict' else (f'from {places[0]!r}',))

    @pytest.mark.parametrize('nothing', [None, {}, 'none', {'epoch': 3}])
    def test_what_holds_no_weights_is_passed_over(self, tmp_path, nothing):
        content = dict.fromkeys(PLACES, nothing) | dict(model=WEIGHTS)
        assert_close(tensors_of(save(tmp_path, content)), WEIGHTS, rtol=0, atol=0)

    def test_what_mmengine_averages_is_under_state_dict(self, tmp_path):
        """Its EMAHook swaps: under ema_state_dict are the weights that were not averaged."""
        content = dict(state_dict=WEIGHTS, ema_state_dict={'other': torch.zeros(1)})
        assert_close(tensors_of(save(tmp_path, content)), WEIGHTS, rtol=0, atol=0)

    @pytest.mark.parametrize(
        'prefix', ['module.', '_orig_mod.', 'module._orig_mod.', '_orig_mod.module.', 'module.' * 2]
    )
    def test_wrappers_of_all_names_are_taken_off(self, tmp_path, prefix):
        wrapped = {prefix + name: value for name, value in WEIGHTS.items()}
        path = save(tmp_path, dict(model=wrapped))
        assert_close(tensors_of(path), WEIGHTS, rtol=0, atol=0)

    def test_modules_of_these_names_are_kept(self, tmp_path):
        weights = {'module.weight': torch.ones(2), 'head.weight': torch.ones(3)}
        assert_close(tensors_of(save(tmp_path, weights)), weights, rtol=0, atol=0)

    @pytest.mark.parametrize('prefix', ['student.', 'student.model.', 'module.student.'])
    def test_of_a_distillation_run_the_student(self, tmp_path, prefix):
        weights = {prefix + name: value for name, value in WEIGHTS.items()}
        wrapper = 'module.' if prefix.startswith('module.') else ''
        weights[f'{wrapper}neck.weight'] = torch.ones(1)
        student, notes = read_weights(save(tmp_path, dict(state_dict=weights)))
        assert_close(student, WEIGHTS, rtol=0, atol=0)
        assert notes == ('of the student of a distillation run',)


COMMAND_LINE = dict(
    output=pathlib.Path('work_dirs/run'),
    pure=[pathlib.PurePosixPath('a'), pathlib.PureWindowsPath('b')],
    device=torch.device('cuda:0'),
    dtype=torch.float16,
    nested=Namespace(lr=0.1),
    betas=(0.9, 0.999),
)


class TestCommandLine:
    """The trainers of timm and DeiT write their command line into the file."""

    @pytest.mark.parametrize('legacy', [False, True], ids=['zip', 'legacy'])
    def test_is_passed_over(self, tmp_path, legacy):
        content = dict(model=WEIGHTS, args=Namespace(**COMMAND_LINE))
        path = save(tmp_path, content, _use_new_zipfile_serialization=not legacy)
        assert_close(tensors_of(path), WEIGHTS, rtol=0, atol=0)

    def test_gets_no_attribute_and_no_path(self, tmp_path, monkeypatch):
        monkeypatch.chdir(tmp_path)
        evil = Namespace(**COMMAND_LINE)
        evil.__dict__['__class__'] = evil.__dict__['__init__'] = 'anything'
        calls = [Calls(pathlib.PosixPath, 'canary'), Calls(getattr, evil, 'nested')]
        content = load_checkpoint(save(tmp_path, dict(args=evil, calls=calls)))
        stand_in = type(content['args'])
        for value in (content['args'], *content['calls']):
            assert type(value) is stand_in not in (Namespace, pathlib.PosixPath)
            assert not vars(value)
        assert os.listdir() == ['weights.pth']

    @pytest.mark.parametrize('hide', [lambda call: Namespace(lr=call), lambda call: [{'a': call}]])
    def test_runs_no_code(self, tmp_path, hide):
        canary = tmp_path / 'canary'
        content = dict(model=WEIGHTS, args=hide(Calls(os.mkdir, str(canary))))
        path = save(tmp_path, content)
        assert f'refused: it asks for {os.name}.mkdir' in refuses(tensors_of, path)
        assert not canary.exists()

    @pytest.mark.parametrize('name', ['exists', 'mkdir', 'write_text', 'home'])
    def test_gives_no_method(self, tmp_path, name):
        """Not even of the classes that the stand-ins stand for."""
        path = tmp_path / 'weights.pth'
        # c: a class's attribute by its dotted path; R: called with the tuple of one string
        path.write_bytes(
            b'\x80\x02cpathlib\nPosixPath.' + name.encode() + b'\nX\x01\x00\x00\x00x\x85R.'
        )
        reason = refuses(load_checkpoint, str(path))
        assert 'cannot be read' in reason or 'refused' in reason


# Runs in a process of its own, since huggingface_hub reads its settings once.
READ_FROM_HUB = """
import sys
from mldr_kd_mm.checkpoint import read_weights
for name in sys.argv[1:]:
    try:
        print(read_weights(name, 'teacher_checkpoint').tensors)
    except Exception as error:
        print(f'{type(error).__name__}: {error}')
"""


def test_reads_from_the_hub(tmp_path):
    """What an earlier session has fetched, since there may be no network."""

    def repository(name, file, value, revision='main'):
        folder = tmp_path / f'hub/models--{name.replace("/", "--")}'
        commit = f'{value:040}'
        for directory in (folder / 'snapshots' / commit, folder / 'refs'):
            directory.mkdir(parents=True, exist_ok=True)
        (folder / 'refs' / revision).write_text(commit)
        write = save_file if file.endswith('.safetensors') else torch.save
        write({'weight': torch.tensor(value)}, folder / 'snapshots' / commit / file)

    repository('timm/one', 'model.safetensors', 1)
    repository('timm/one', 'model.safetensors', 2, 'other')
    repository('timm/pickled', 'pytorch_model.bin', 3)
    names = ['hf-hub:timm/one', 'hf_hub:timm/one', 'hf-hub:timm/one@other', 'hf-hub:timm/pickled']
    names += ['hf-hub:timm/absent', 'hf-hub:timm/one@absent', 'hf-hub:no such/name']
    process = subprocess.run(
        [sys.executable, '-c', READ_FROM_HUB, *names],
        env=os.environ | dict(HF_HUB_OFFLINE='1', HF_HOME=str(tmp_path)),
        capture_output=True,
        text=True,
        check=True,
    )
    # What mmpretrain imports may have something to say before.
    *tensors, absent, no_revision, no_name = process.stdout.splitlines()[-len(names) :]
    assert tensors == [f"{{'weight': tensor({value})}}" for value in (1, 1, 2, 3)]
    for line, name in ((absent, names[4]), (no_revision, names[5])):
        assert line == (
            f'ConfigError: teacher_checkpoint={name!r}: cannot be read as weights: the hub cannot '
            'be reached, and neither model.safetensors nor pytorch_model.bin is in its local cache'
        )
    assert no_name.startswith(f'ConfigError: teacher_checkpoint={names[6]!r}: ')


@pytest.mark.parametrize('load', [load_checkpoint, tensors_of])
class TestErrors:
    @pytest.mark.parametrize('name', ['absent.pth', 'absent.safetensors', ''])
    def test_missing_file(self, load, tmp_path, name):
        path = str(tmp_path / name)  # the last is a directory
        with pytest.raises(FileNotFoundError) as caught:
            load(path, 'teacher_checkpoint')
        assert str(caught.value) == f'teacher_checkpoint={path!r}: there is no such file'

    def test_unreachable_url(self, load, tmp_path, monkeypatch):
        monkeypatch.setenv('TORCH_HOME', str(tmp_path / 'cache'))
        assert 'cannot be read' in refuses(load, (tmp_path / 'absent.pth').as_uri())

    @pytest.mark.parametrize('writer', ['torch', 'torch legacy', 'pickle'])
    @pytest.mark.parametrize(
        ('function', 'name'),
        [(os.mkdir, f'{os.name}.mkdir'), (exec, 'exec')],
        ids=['mkdir', 'exec'],
    )
    def test_runs_no_code(self, load, tmp_path, writer, function, name):
        canary, path = tmp_path / 'canary', tmp_path / 'weights.pth'
        argument = str(canary) if function is os.mkdir else f'import os; os.mkdir({str(canary)!r})'
        content = dict(state_dict=WEIGHTS, evil=Calls(function, argument))
        if writer == 'pickle':
            path.write_bytes(pickle.dumps(content, 2))
        else:
            save(tmp_path, content, _use_new_zipfile_serialization=writer == 'torch')
        assert 'refused: it asks for ' in refuses(load, str(path))
        assert not canary.exists()

        if writer != 'pickle':
            torch.load(path, weights_only=False)
            assert canary.exists(), 'the canary would not have sung in any case'

    @pytest.mark.parametrize('content', [b'', b'text\n', b'\x80\x02]q\x00.', b'PK\x03\x04'])
    @pytest.mark.parametrize('name', ['weights.pth', 'weights.safetensors'])
    def test_no_checkpoint(self, load, tmp_path, content, name):
        path = tmp_path / name
        path.write_bytes(content)
        assert 'cannot be read as weights: ' in refuses(load, str(path))

    @pytest.mark.parametrize('keep', [0.3, 0.9])
    def test_truncated_file(self, load, tmp_path, keep):
        path = tmp_path / 'weights.pth'
        torch.save(WEIGHTS, path)
        path.write_bytes(path.read_bytes()[: int(keep * path.stat().st_size)])
        assert 'cannot be read as weights: ' in refuses(load, str(path))


@pytest.mark.parametrize(
    'content',
    [
        [1, 2, 3],
        torch.zeros(3),
        None,
        {},
        dict(epoch=3),
        dict(state_dict={}),
        dict(state_dict=None),
        dict(state_dict=[1, 2]),
        dict(state_dict={'a': 1}),
        WEIGHTS | dict(epoch=3),
        dict(state_dict={3: torch.ones(1)}),
        {'state\ndict\x1b[2J': 3},
    ],
    ids=[
        'list',
        'tensor',
        'nothing',
        'empty',
        'no weights',
        'empty state dict',
        'no state dict',
        'list as state dict',
        'number in state dict',
        'number in bare state dict',
        'number as a name',
        'name of control characters',
    ],
)
def test_no_weights(tmp_path, content):
    message = refuses(tensors_of, save(tmp_path, content))
    is_dict = isinstance(content, dict)
    reason = "'model_ema'; it has: " if is_dict else 'must hold a dict, it'
    assert reason in message
    assert ('has no weights under ' in message) == is_dict

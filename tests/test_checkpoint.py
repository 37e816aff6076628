"""Checkpoints: every kind that users have is read, and none runs code."""

from __future__ import annotations

import os
import pickle

import pytest
import torch
from helpers import resnet, train
from mmengine.logging import HistoryBuffer
from safetensors.torch import save_file
from torch.testing import assert_close

from mldr_kd_mm import ConfigError
from mldr_kd_mm.checkpoint import load_checkpoint, load_state_dict
from mldr_kd_mm.registry import MODELS

WEIGHTS = {'a.weight': torch.arange(6.0).reshape(2, 3), 'a.bias': torch.ones(2, dtype=torch.int64)}


class Calls:
    """Pickles to a call of ``function``."""

    def __init__(self, function, *args):
        self.call = function, args

    def __reduce__(self):
        return self.call


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
    assert_close(load_state_dict(path), WEIGHTS, rtol=0, atol=0)
    assert load_checkpoint(path).keys() == content.keys()


def test_reads_the_state_dict_of_a_module(tmp_path):
    """An OrderedDict with metadata, of parameters and buffers."""
    expected = torch.nn.BatchNorm1d(3).state_dict()
    assert_close(load_state_dict(save(tmp_path, expected)), dict(expected), rtol=0, atol=0)


def test_reads_safetensors(tmp_path):
    path = str(tmp_path / 'weights.safetensors')
    save_file(WEIGHTS, path)
    assert_close(load_state_dict(path), WEIGHTS, rtol=0, atol=0)


def test_reads_a_url(tmp_path, monkeypatch):
    monkeypatch.setenv('TORCH_HOME', str(tmp_path / 'cache'))
    save(tmp_path, WEIGHTS)
    url = (tmp_path / 'weights.pth').as_uri()
    assert_close(load_state_dict(url), WEIGHTS, rtol=0, atol=0)


def test_urls_that_end_alike(tmp_path, monkeypatch):
    monkeypatch.setenv('TORCH_HOME', str(tmp_path / 'cache'))
    for run, value in (('first', 1.0), ('second', 2.0)):
        (tmp_path / run).mkdir()
        path = tmp_path / run / 'epoch_300.pth'
        torch.save({'weight': torch.tensor(value)}, path)
        assert load_state_dict(path.as_uri())['weight'] == value


def test_reads_what_the_runner_wrote(tmp_path):
    """Whatever mmengine logs, its message hub, optimizer and schedules are in the file too."""
    schedule = [dict(type='CosineAnnealingLR', T_max=1)]
    runner = train(resnet(), tmp_path, param_scheduler=schedule)
    path = str(tmp_path / 'epoch_1.pth')
    assert_close(load_state_dict(path), dict(runner.model.state_dict()), rtol=0, atol=0)

    everything = torch.load(path, weights_only=False)
    assert isinstance(everything['message_hub']['log_scalars']['train/loss'], HistoryBuffer)
    checkpoint = load_checkpoint(path)
    assert checkpoint.keys() == everything.keys() > {'message_hub', 'optimizer', 'param_schedulers'}
    assert checkpoint['meta']['epoch'] == 1
    assert checkpoint['optimizer']['param_groups'][0]['lr'] == 0.01
    MODELS.build(resnet()).load_state_dict(load_state_dict(path))


@pytest.mark.parametrize('load', [load_checkpoint, load_state_dict])
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
    ],
)
def test_no_weights(tmp_path, content):
    message = refuses(load_state_dict, save(tmp_path, content))
    is_dict = isinstance(content, dict)
    reason = "has no weights under 'state_dict'; it has: " if is_dict else 'must hold a dict, it'
    assert reason in message

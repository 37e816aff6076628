"""Files that would run code are rejected wherever a path is accepted, without running it.

The code creates a folder, the canary. Each file is first shown to do so when it is trusted.
"""

from __future__ import annotations

import os
import pickle
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from helpers import mldr, resnet, runner_config, timm_resnet, train, vit
from mmengine.config import Config
from mmengine.runner import CheckpointLoader, FlexibleRunner, load_checkpoint

from mldr_kd_mm import ConfigError, cli
from mldr_kd_mm.datasets import VerifiedCIFAR100
from mldr_kd_mm.registry import MODELS
from mldr_kd_mm.utils.checkpoint import use_safe_loading


class HostilePickle:
    """Object whose pickle creates a folder when it is loaded."""

    def __init__(self, canary: Path) -> None:
        self.canary = canary

    def __reduce__(self):
        return os.mkdir, (str(self.canary),)


@pytest.fixture
def canary(tmp_path) -> Path:
    """Path that must not exist after the test."""
    path = tmp_path / 'canary'
    yield path
    assert not path.exists(), 'the code of a file has run'


@pytest.fixture
def safe_loading(monkeypatch):
    """Let mmengine read checkpoints safely until the end of the test."""
    monkeypatch.setattr(CheckpointLoader, '_schemes', dict(CheckpointLoader._schemes))
    use_safe_loading()


@pytest.fixture(scope='module')
def finished(tmp_path_factory) -> Path:
    """Return the checkpoint of a run of one epoch."""
    folder = tmp_path_factory.mktemp('finished') / 'run'
    train(mldr(), folder)
    return folder / 'epoch_1.pth'


# Places of a checkpoint where code may hide: functions of its content and the code.
PLACES = {
    'beside': lambda content, evil: content | {'evil': evil},
    'optimizer': lambda content, evil: content | {'optimizer': {'state': [evil]}},
    'message_hub': lambda content, evil: content | {'message_hub': {'log_scalars': {'a': evil}}},
    'key': lambda content, evil: content | {'meta': {(evil,): 1}},
    'metadata': lambda content, evil: _with_metadata(content, evil),
}


def _with_metadata(content, evil):
    content['state_dict']._metadata = {'': evil}
    return content


@pytest.fixture(params=PLACES)
def hostile(request, finished, tmp_path, canary) -> str:
    """Return the path of a checkpoint that also holds code."""
    content = torch.load(finished, weights_only=False)
    path = tmp_path / 'hostile.pth'
    torch.save(PLACES[request.param](content, HostilePickle(canary)), path)
    assert_runs_code(path, canary)
    return str(path)


def assert_runs_code(path: Path, canary: Path) -> None:
    """Assert that the file's code runs when it is trusted."""
    torch.load(path, weights_only=False)
    assert canary.is_dir()
    canary.rmdir()


def refuses(function, field: str, path: str) -> None:
    with pytest.raises(ConfigError) as caught:
        function()
    message = f'{field}={path!r}: refused: it asks for {os.name}.mkdir; weights must be tensors'
    assert str(caught.value).startswith(message)
    assert str(caught.value).isprintable()


@pytest.mark.parametrize('student', [resnet, timm_resnet])
def test_teacher_checkpoint(hostile, student):
    config = mldr(teacher=student(), teacher_checkpoint=hostile)
    refuses(lambda: MODELS.build(config), 'teacher_checkpoint', hostile)


@pytest.mark.usefixtures('safe_loading')
class TestThroughMMEngine:
    @pytest.mark.parametrize('resume', [False, True], ids=['load_from', 'resume'])
    def test_of_the_runner(self, hostile, tmp_path, resume):
        def run():
            train(mldr(), tmp_path / 'run', max_epochs=2, load_from=hostile, resume=resume)

        refuses(run, 'checkpoint', hostile)
        assert not list(tmp_path.glob('run/*.pth'))

    def test_of_the_flexible_runner(self, hostile, tmp_path):
        """FSDP uses it; that needs several processes."""
        config = runner_config(mldr(), tmp_path / 'run', load_from=hostile, env_cfg=dict())
        refuses(FlexibleRunner.from_cfg(Config(config)).train, 'checkpoint', hostile)

    def test_the_newest_of_a_run(self, hostile, tmp_path):
        """``resume`` finds it without a path."""
        work_dir = tmp_path / 'run'
        work_dir.mkdir()
        newest = str(work_dir / 'epoch_1.pth')
        shutil.copy(hostile, newest)
        (work_dir / 'last_checkpoint').write_text(newest)
        refuses(lambda: train(mldr(), work_dir, max_epochs=2, resume=True), 'checkpoint', newest)

    @pytest.mark.parametrize('part', ['teacher', 'student'])
    def test_init_cfg(self, hostile, tmp_path, part):
        pretrained = dict(type='Pretrained', checkpoint=hostile)
        model = dict(teacher=vit(), student=resnet())
        model[part]['init_cfg'] = pretrained
        refuses(MODELS.build(mldr(**model)).init_weights, 'checkpoint', hostile)

    def test_init_cfg_of_a_backbone(self, hostile):
        config = resnet()
        config['backbone']['init_cfg'] = dict(
            type='Pretrained', checkpoint=hostile, prefix='student.backbone.'
        )
        refuses(MODELS.build(config).init_weights, 'checkpoint', hostile)

    def test_a_function_of_mmengine(self, hostile):
        model = MODELS.build(resnet())
        refuses(lambda: load_checkpoint(model, hostile), 'checkpoint', hostile)


def test_exporter(hostile, tmp_path, capsys):
    with pytest.raises(SystemExit) as end:
        cli.main(['export', hostile, str(tmp_path / 'student.pth')])
    assert end.value.code == 2
    said = capsys.readouterr().err
    assert said.startswith(f'error: checkpoint={hostile!r}: refused: it asks for {os.name}.mkdir')
    assert said.count('\n') == 1
    assert not (tmp_path / 'student.pth').exists()


@pytest.mark.parametrize('place', ['beside', 'label', 'key'])
def test_cifar(tmp_path, canary, place):
    evil = HostilePickle(canary)
    content = dict(data=np.zeros((100, 3072), np.uint8), fine_labels=list(range(100)))
    if place == 'beside':
        content['evil'] = evil
    elif place == 'label':
        content['fine_labels'][0] = evil
    else:
        content[(evil,)] = 0
    folder = tmp_path / 'data/cifar-100-python'
    folder.mkdir(parents=True)
    for name in ('train', 'test'):
        (folder / name).write_bytes(pickle.dumps(content))
    pickle.loads((folder / 'train').read_bytes())
    canary.rmdir()

    with pytest.raises(ConfigError, match=rf'train: refused, it asks for {os.name}\.mkdir'):
        VerifiedCIFAR100(data_root=str(tmp_path / 'data'), verify=False)


@pytest.mark.usefixtures('safe_loading')
@pytest.mark.parametrize('file', [b'', b'\x80\x04.', b'PK\x03\x04', b'\0' * 1000])
def test_what_is_no_checkpoint_is_said_in_one_line(tmp_path, file):
    path = tmp_path / 'file.pth'
    path.write_bytes(file)
    with pytest.raises(ConfigError, match='cannot be read as weights: ') as caught:
        train(mldr(), tmp_path / 'run', load_from=str(path), resume=True)
    assert str(caught.value).isprintable()

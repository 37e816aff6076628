"""Checkpoints of all trainers are loaded, and none executes code."""

from __future__ import annotations

import copy
import os
import pathlib
import pickle
import re
import time
import warnings
from argparse import Namespace
from contextlib import contextmanager, nullcontext
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Thread
from zipfile import ZIP_DEFLATED, ZipFile

import numpy as np
import pytest
import torch
from helpers import resnet, train
from hypothesis import given, settings
from hypothesis import strategies as st
from mmengine.logging import HistoryBuffer
from mmengine.runner import CheckpointLoader
from mmengine.runner import load_checkpoint as load_mmengine_checkpoint
from safetensors.torch import save_file
from torch.testing import assert_close

from mldr_kd_mm import ConfigError
from mldr_kd_mm.registry import MODELS
from mldr_kd_mm.utils.checkpoint import (
    class_names,
    load_checkpoint,
    read_weights,
    use_safe_loading,
)

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
    """The file has an OrderedDict of parameters and buffers, with metadata."""
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


def comparable(value):
    """Return plain values that are equal if the contents are, bit by bit; without functions."""
    if isinstance(value, torch.Tensor):
        return 'tensor', value.dtype, comparable(value.numpy())
    if isinstance(value, (np.ndarray, np.generic)):
        return type(value), value.dtype.str, value.shape, value.tobytes()
    if isinstance(value, HistoryBuffer):
        return comparable({n: v for n, v in vars(value).items() if n != 'statistics_methods'})
    if isinstance(value, dict):
        items = [(key, comparable(v)) for key, v in value.items() if not callable(v)]
        return type(value), items
    if isinstance(value, (list, tuple)):
        return type(value), [comparable(item) for item in value]
    return type(value), repr(value)


RUN = dict(
    custom_hooks=[dict(type='EMAHook')],
    optim_wrapper=dict(optimizer=dict(type='AdamW', lr=0.01), clip_grad=dict(max_norm=1.0)),
    param_scheduler=[
        dict(type='LinearLR', start_factor=0.1, end=2, by_epoch=False),
        dict(type='CosineAnnealingLR', T_max=2),
        dict(type='MultiStepLR', milestones=[1]),
        dict(type='CosineAnnealingMomentum', T_max=2),
        dict(type='OneCycleLR', eta_max=0.1, total_steps=10),
    ],
)


@pytest.fixture(scope='module')
def run(tmp_path_factory):
    """A Runner after one epoch, whose checkpoint has all kinds of objects."""
    return train(resnet(), tmp_path_factory.mktemp('runs') / 'run', **copy.deepcopy(RUN))


def checkpoint_of(runner) -> str:
    return str(Path(runner.work_dir) / 'epoch_1.pth')


class TestOfTheRunner:
    """Checkpoints of mmengine also hold its message hub, optimizer and schedules."""

    def test_is_read_whole(self, run):
        path = checkpoint_of(run)
        everything = torch.load(path, weights_only=False)
        expected = {'message_hub', 'optimizer', 'param_schedulers', 'ema_state_dict'}
        assert everything.keys() > expected
        assert isinstance(everything['message_hub']['log_scalars']['train/loss'], HistoryBuffer)
        assert comparable(load_checkpoint(path)) == comparable(everything)
        MODELS.build(resnet()).load_state_dict(tensors_of(path))

    @pytest.mark.parametrize('core', [b'numpy.core', b'numpy._core'])
    def test_is_read_whatever_numpy_wrote_it(self, run, tmp_path, core):
        """numpy 2 renamed the module that its pickles import from."""
        path = str(tmp_path / 'other.pth')
        with ZipFile(checkpoint_of(run)) as written, ZipFile(path, 'w') as other:
            for record in written.infolist():
                content = written.read(record)
                if record.filename.endswith('data.pkl'):
                    content, count = re.subn(rb'numpy\._?core(?=\.multiarray\n)', core, content)
                    assert count > 0
                other.writestr(record.filename, content)
        assert comparable(load_checkpoint(path)) == comparable(load_checkpoint(checkpoint_of(run)))


NUMBERS = {
    'float': np.float64(0.1),
    'int': np.int32(-3),
    'bool': np.bool_(True),
    'big-endian': np.arange(4, dtype='>i2'),
    'columns': np.asfortranarray(np.arange(6.0).reshape(2, 3)),
    'none': np.zeros((0, 3), np.float32),
    'nothing but one': np.array(7),
    'in a tuple': (np.arange(3), [np.float32(1)]),
}


@pytest.mark.parametrize('legacy', [False, True], ids=['zip', 'legacy'])
def test_reads_numbers_of_numpy(tmp_path, legacy):
    content = load_checkpoint(save(tmp_path, NUMBERS, _use_new_zipfile_serialization=not legacy))
    assert comparable(content) == comparable(NUMBERS)
    content['columns'][0, 0] = 5  # the array is writable


def test_leaves_out_other_arrays(tmp_path):
    content = dict(
        model=WEIGHTS,
        objects=np.array([None, 'a'], dtype=object),
        texts=np.array(['text']),
        records=np.zeros(2, dtype='i4,f4'),
        dtype=np.dtype('f4'),
        list=[np.array(['text']), 1],
    )
    read = load_checkpoint(save(tmp_path, content))
    assert read.keys() == {'model', 'list'}
    assert read['list'] == [None, 1]


HISTORY = dict(_log_history=np.ones(2), _count_history=np.ones(2), max_length=9)


@pytest.mark.parametrize(
    'change',
    [
        dict(max_length='9'),
        dict(max_length=1),
        dict(_count_history=np.ones(3)),
        dict(_log_history=np.ones((2, 1)), _count_history=np.ones((2, 1))),
        dict(_log_history=np.array(['a', 'b'])),
        dict(_log_history=[1.0, 2.0]),
    ],
)
def test_a_history_must_be_one(tmp_path, change):
    history = HistoryBuffer.__new__(HistoryBuffer)
    vars(history).update(HISTORY | change)
    refuses(load_checkpoint, save(tmp_path, dict(history=history)))


def test_a_container_may_hold_itself(tmp_path):
    content = {'arrays': [np.arange(3)]}
    content['arrays'].append(content)
    read = load_checkpoint(save(tmp_path, content))
    assert read['arrays'][1] is read
    np.testing.assert_array_equal(read['arrays'][0], np.arange(3))


def test_any_changed_byte_is_noticed(tmp_path):
    """Flip all bits of every other byte, and a single one of the others."""
    content = dict(state_dict=WEIGHTS, n=np.arange(3), log=HistoryBuffer([0.5], [1]), meta='text')
    path = save(tmp_path, content)
    written = Path(path).read_bytes()
    expected = comparable(load_checkpoint(path))
    rng = np.random.default_rng(0)
    noticed = 0
    for position in range(len(written)):
        damaged = bytearray(written)
        damaged[position] ^= 0xFF if position % 2 else 1 << rng.integers(8)
        Path(path).write_bytes(damaged)
        try:
            read = load_checkpoint(path, 'resume')
        except ConfigError as error:
            noticed += 1
            assert str(error).startswith(f'resume={path!r}: ') and str(error).isprintable()
        else:
            assert comparable(read) == expected, f'byte {position} of {len(written)}'
    assert noticed > len(written) // 2  # the rest is padding


@pytest.mark.parametrize(
    ('pickled', 'reason'),
    [
        (b'c\x1b[2Jos\nmkdir\n.', 'refused: it asks for [2Jos.mkdir'),
        (b'c' + b'o' * 10_000 + b'\nmkdir\n.', 'refused: it asks for ' + 'o' * 200),
        # An instruction of protocol 4.
        (b'\x94.', 'cannot be read as weights: Unsupported operand 148'),
    ],
    ids=['codes of a terminal', 'long', 'instruction'],
)
def test_refusals_are_short_and_give_no_bad_advice(tmp_path, pickled, reason):
    path = save(tmp_path, WEIGHTS)
    with ZipFile(path) as archive:
        records = {name: archive.read(name) for name in archive.namelist()}
    with ZipFile(path, 'w') as archive:
        for name, content in records.items():
            archive.writestr(name, b'\x80\x02' + pickled if name.endswith('.pkl') else content)
    message = refuses(load_checkpoint, path)
    assert message.startswith(f'teacher_checkpoint={path!r}: {reason}')
    assert len(message) < 500 and 'weights_only' not in message


@settings(max_examples=300, deadline=None)
@given(st.data())
def test_a_damaged_pickle_is_read_or_refused(tmp_path_factory, data):
    """The checksum is correct, as in an attacker's file."""
    path = tmp_path_factory.getbasetemp() / 'damaged.pth'
    torch.save(dict(model=WEIGHTS, n=np.arange(3), log=HistoryBuffer([0.5], [1]), a='text'), path)
    with ZipFile(path) as archive:
        records = {name: archive.read(name) for name in archive.namelist()}
    name = next(name for name in records if name.endswith('data.pkl'))
    content = bytearray(records[name])
    for _ in range(data.draw(st.integers(1, 3))):
        content[data.draw(st.integers(0, len(content) - 1))] = data.draw(st.integers(0, 255))
    with ZipFile(path, 'w') as archive:
        for record, old in records.items():
            archive.writestr(record, bytes(content) if record == name else old)
    try:
        assert isinstance(load_checkpoint(str(path)), dict)
    except ConfigError as error:
        assert str(error).startswith(f"checkpoint='{path}': ") and str(error).isprintable()


def test_any_truncation_is_noticed(tmp_path):
    path = save(tmp_path, WEIGHTS)
    written = Path(path).read_bytes()
    for length in range(len(written)):
        Path(path).write_bytes(written[:length])
        refuses(load_checkpoint, path)


def repack(path: str, **kwargs) -> None:
    """Write the records of an archive again, with these arguments of a ZipFile."""
    with ZipFile(path) as archive:
        records = {name: archive.read(name) for name in archive.namelist()}
    with ZipFile(path, 'w', **kwargs) as archive:
        for name, content in records.items():
            archive.writestr(name, content)


def test_a_bomb_does_not_burst(tmp_path):
    path = save(tmp_path, {'weight': torch.zeros(50_000_000)})
    repack(path, compression=ZIP_DEFLATED)
    assert os.path.getsize(path) < 1e6
    started = time.perf_counter()
    assert 'damaged, its records are not as torch.save writes' in refuses(load_checkpoint, path)
    assert time.perf_counter() - started < 0.1  # not unpacked


@pytest.mark.parametrize('name', ['weights/data/0', 'weights/DATA/0'])
def test_two_records_of_one_name(tmp_path, name):
    path = save(tmp_path, WEIGHTS)
    with warnings.catch_warnings():
        warnings.simplefilter('ignore', UserWarning)  # zipfile warns about the duplicate
        with ZipFile(path, 'a') as archive:
            assert 'weights/data/0' in archive.namelist()
            archive.writestr(name, bytes(24))
    assert 'damaged, its records are not as torch.save writes' in refuses(load_checkpoint, path)


@pytest.mark.parametrize('checksums', [True, False])
def test_two_archives_in_one_file(tmp_path, checksums):
    """Python reads the second one's directory, torch the first one's, which is a bomb."""
    bomb = save(tmp_path, {'weight': torch.zeros(1_000_000)}, 'bomb.pth')
    repack(bomb, compression=ZIP_DEFLATED)
    torch.serialization.set_crc32_options(checksums)
    try:
        harmless = save(tmp_path, {'weight': torch.zeros(1)})
    finally:
        torch.serialization.set_crc32_options(True)
    for first, second in ((bomb, harmless), (harmless, bomb), (harmless, harmless)):
        path = tmp_path / 'both.pth'
        path.write_bytes(Path(first).read_bytes() + Path(second).read_bytes())
        assert 'damaged, its records are not as torch.save' in refuses(load_checkpoint, str(path))
    Path(harmless).write_bytes(Path(harmless).read_bytes() + b'x')
    assert 'damaged, its records are not as torch.save' in refuses(load_checkpoint, harmless)


def test_a_directory_elsewhere(tmp_path):
    """The end of a zip64 archive points to its directory; Python would not look there."""
    path = save(tmp_path, WEIGHTS)
    content = Path(path).read_bytes()
    assert content[-42:-38] == b'PK\x06\x07'
    other = bytearray(content)
    other[-34:-26] = (len(content) - 98 - 56).to_bytes(8, 'little')
    Path(path).write_bytes(other)
    assert 'damaged' in refuses(load_checkpoint, path)


def test_an_archive_without_checksums(tmp_path, monkeypatch):
    torch.serialization.set_crc32_options(False)
    try:
        path = save(tmp_path, WEIGHTS)
    finally:
        torch.serialization.set_crc32_options(True)
    assert_close(tensors_of(path), WEIGHTS, rtol=0, atol=0)


@pytest.fixture
def safe_loading(monkeypatch):
    """Let mmengine load checkpoints safely during the test."""
    monkeypatch.setattr(CheckpointLoader, '_schemes', dict(CheckpointLoader._schemes))
    use_safe_loading()


@pytest.mark.usefixtures('safe_loading')
class TestSafeLoading:
    """mmengine loads checkpoints through this project."""

    def test_resumes(self, run, tmp_path):
        path = checkpoint_of(run)
        resumed = train(
            resnet(), tmp_path, max_epochs=2, load_from=path, resume=True, **copy.deepcopy(RUN)
        )
        assert resumed.iter == 8
        losses = [r.message_hub.get_scalar('train/loss').data[0] for r in (run, resumed)]
        assert len(losses[1]) == 8
        np.testing.assert_array_equal(losses[1][:4], losses[0])
        assert resumed.optim_wrapper.state_dict()['state'][0]['step'] == 8

    @pytest.mark.parametrize('scheme', ['', 'http'])
    @pytest.mark.parametrize('field', ['load_from', 'init_cfg'])
    def test_reads_weights(self, tmp_path, monkeypatch, field, scheme):
        """The weights of another trainer, whose command line is dropped."""
        model = MODELS.build(resnet())
        weights = {name: torch.full_like(v, 2) for name, v in model.state_dict().items()}
        path = save(tmp_path, dict(state_dict=weights, args=Namespace(**COMMAND_LINE)))
        with serve(tmp_path) if scheme else nullcontext(str(tmp_path)) as folder:
            monkeypatch.setenv('TORCH_HOME', str(tmp_path / 'cache'))
            source = f'{folder}/{Path(path).name}'
            if field == 'load_from':
                load_mmengine_checkpoint(model, source)
            else:
                model = MODELS.build(resnet(init_cfg=dict(type='Pretrained', checkpoint=source)))
                model.init_weights()
        assert_close(dict(model.state_dict()), weights, rtol=0, atol=0)

    def test_puts_tensors_where_mmengine_wants_them(self, tmp_path):
        path = save(tmp_path, WEIGHTS)
        read = CheckpointLoader.load_checkpoint(path, map_location='meta')
        assert read['a.bias'].is_meta

    def test_missing_file(self, tmp_path):
        path = str(tmp_path / 'absent.pth')
        with pytest.raises(FileNotFoundError, match='there is no such file'):
            CheckpointLoader.load_checkpoint(path)

    @pytest.mark.parametrize(
        'path',
        [
            'torchvision://resnet18',
            'modelzoo://resnet18',
            'open-mmlab://a',
            'openmmlab://a',
            'mmcls://a',
            'pavi://a',
            's3://a',
            'cluster:petrel://a',
        ],
    )
    def test_files_elsewhere_are_not_fetched(self, path):
        with pytest.raises(ConfigError) as caught:
            CheckpointLoader.load_checkpoint(path)
        message = f'checkpoint={path!r}: must be a path, an http(s) URL or hf-hub:NAME'
        assert str(caught.value) == message

    def test_no_scheme_is_left_to_mmengine(self):
        loaders = {loader.__module__ for loader in CheckpointLoader._schemes.values()}
        assert loaders == {'mldr_kd_mm.utils.checkpoint'}


@contextmanager
def serve(folder: Path):
    """Serve the files of a folder; yield the URL."""
    handler = partial(SimpleHTTPRequestHandler, directory=str(folder))
    with ThreadingHTTPServer(('127.0.0.1', 0), handler) as server:
        thread = Thread(target=server.serve_forever)
        thread.start()
        try:
            yield f'http://127.0.0.1:{server.server_port}'
        finally:
            server.shutdown()
            thread.join()


PLACES = ['state_dict_ema', 'state_dict', 'model', 'model_state_dict', 'module', 'model_ema']


def torchscript(path: Path) -> None:
    torch.jit.save(torch.jit.trace(torch.nn.Linear(1, 1), torch.ones(1, 1)), str(path))


OTHER_FILES = {
    'a Git LFS pointer, not the file itself; run git lfs pull': (
        b'version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 10\n'
    ),
    'a web page; download': b'\n <!DOCTYPE HTML>\n<html><body>Not found</body></html>',
    'an XML document; download': b'<?xml version="1.0"?><Error><Code>AccessDenied</Code></Error>',
    'a JSON file': b'{"metadata": {}, "weight_map": {"a": "model-00001-of-00002.safetensors"}}',
    'a gzip archive': b'\x1f\x8b\x08' + bytes(30),
    'a tar archive': b'weights'.ljust(257, b'\0') + b'ustar' + bytes(250),
    'an HDF5 file': b'\x89HDF\r\n\x1a\n' + bytes(30),
    'a TorchScript archive; save the state_dict': torchscript,
    'a NumPy archive': lambda path: np.savez(path.open('wb'), a=np.ones(3)),
    'a zip archive without': lambda path: ZipFile(path, 'w').writestr('a/cat.png', b'image'),
    'empty': b'',
}


@pytest.mark.parametrize('kind', OTHER_FILES)
@pytest.mark.parametrize('name', ['weights.pth', 'weights.safetensors'])
def test_other_files_are_called_what_they_are(tmp_path, kind, name):
    path, content = tmp_path / name, OTHER_FILES[kind]
    content(path) if callable(content) else path.write_bytes(content)
    assert f'cannot be read as weights: it is {kind}' in refuses(tensors_of, str(path))


def test_safetensors_of_another_name(tmp_path):
    """The Hugging Face hub has safetensors files named .bin, and the other way round."""
    save_file(WEIGHTS, tmp_path / 'model.bin')
    torch.save(WEIGHTS, tmp_path / 'model.safetensors')
    for name in ('model.bin', 'model.safetensors'):
        assert_close(tensors_of(str(tmp_path / name)), WEIGHTS, rtol=0, atol=0)


class TestPlaces:
    def test_the_first_of_several_is_read(self, tmp_path):
        for count in range(1, len(PLACES) + 1):
            places = PLACES[-count:]
            others = {place: {'other': torch.zeros(1)} for place in places[1:]}
            # The order in the file is different.
            path = save(tmp_path, dict(epoch=3) | others | {places[0]: WEIGHTS})
            weights, notes = read_weights(path)
            assert_close(weights, WEIGHTS, rtol=0, atol=0)
            assert notes == (() if places[0] == 'state_dict' else (f'from {places[0]!r}',))

    def test_keys_without_weights_are_skipped(self, tmp_path):
        for nothing in (None, {}, 'none', {'epoch': 3}):
            content = dict.fromkeys(PLACES, nothing) | dict(model=WEIGHTS)
            assert_close(tensors_of(save(tmp_path, content)), WEIGHTS, rtol=0, atol=0)

    def test_what_mmengine_averages_is_under_state_dict(self, tmp_path):
        """EMAHook swaps the two, so ema_state_dict holds the weights that are not averaged."""
        content = dict(state_dict=WEIGHTS, ema_state_dict={'other': torch.zeros(1)})
        assert_close(tensors_of(save(tmp_path, content)), WEIGHTS, rtol=0, atol=0)

    @pytest.mark.parametrize(
        'prefix', ['module.', '_orig_mod.', 'module._orig_mod.', '_orig_mod.module.', 'module.' * 2]
    )
    def test_wrappers_of_all_names_are_taken_off(self, tmp_path, prefix):
        wrapped = {prefix + name: value for name, value in WEIGHTS.items()}
        path = save(tmp_path, dict(model=wrapped))
        assert_close(tensors_of(path), WEIGHTS, rtol=0, atol=0)

    @pytest.mark.parametrize('place', ['net', 'state', 'weights', 'backbone'])
    def test_the_only_other_state_dict_is_read(self, tmp_path, place):
        content = {'epoch': 3, 'optimizer': {'state': {}}, place: WEIGHTS}
        weights, notes = read_weights(save(tmp_path, content))
        assert_close(weights, WEIGHTS, rtol=0, atol=0)
        assert notes == (f'from {place!r}',)
        message = refuses(tensors_of, save(tmp_path, content | {'critic': WEIGHTS}))
        assert message.endswith(f'; must have one state dict, has {place}, critic')

    def test_of_an_averaged_model(self, tmp_path):
        average = torch.optim.swa_utils.AveragedModel(torch.nn.Linear(2, 1))
        assert 'n_averaged' in average.state_dict()
        weights = tensors_of(save(tmp_path, dict(model=average.state_dict())))
        assert_close(weights, dict(average.module.state_dict()), rtol=0, atol=0)

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
    """timm and DeiT write their command line into the checkpoint."""

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
        assert content == dict(calls=[None, None])
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
        """Methods of the replaced classes cannot be reached."""
        path = tmp_path / 'weights.pth'
        # c: a class's attribute by its dotted path; R: called with the tuple of one string
        path.write_bytes(
            b'\x80\x02cpathlib\nPosixPath.' + name.encode() + b'\nX\x01\x00\x00\x00x\x85R.'
        )
        reason = refuses(load_checkpoint, str(path))
        assert 'cannot be read' in reason or 'refused' in reason


# Runs in a separate process, since huggingface_hub reads its settings only once.
def test_reads_from_the_hub(tmp_path, monkeypatch):
    """Reads the local cache, since there may be no network."""
    monkeypatch.setattr('huggingface_hub.constants.HF_HUB_OFFLINE', True)
    monkeypatch.setattr('huggingface_hub.constants.HF_HUB_CACHE', str(tmp_path / 'hub'))

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
    for name, value in zip(names[:4], (1, 1, 2, 3), strict=True):
        assert read_weights(name, 'teacher_checkpoint').tensors == {'weight': torch.tensor(value)}
    for name in names[4:6]:
        assert refusal(name) == (
            f'teacher_checkpoint={name!r}: cannot be read as weights: the hub cannot be reached, '
            'and neither model.safetensors nor pytorch_model.bin is in its local cache'
        )
    assert refusal(names[6]).startswith(f'teacher_checkpoint={names[6]!r}: ')


def refusal(name: str) -> str:
    with pytest.raises(ConfigError) as caught:
        read_weights(name, 'teacher_checkpoint')
    return str(caught.value)


class TestErrors:
    @pytest.mark.parametrize('name', ['absent.pth', 'absent.safetensors', 'absent/a.pth'])
    def test_missing_file(self, tmp_path, name):
        path = str(tmp_path / name)
        with pytest.raises(FileNotFoundError) as caught:
            tensors_of(path, 'teacher_checkpoint')
        assert str(caught.value) == f'teacher_checkpoint={path!r}: there is no such file'

    def test_folder(self, tmp_path):
        with pytest.raises(FileNotFoundError, match='is a folder; it holds no checkpoint$'):
            tensors_of(str(tmp_path))
        for name in ('b.pth', 'a.safetensors', 'config.json'):
            (tmp_path / name).touch()
        with pytest.raises(FileNotFoundError, match='must be a file in it: a.safetensors, b.pth$'):
            tensors_of(str(tmp_path))

    def test_unreachable_url(self, tmp_path, monkeypatch):
        monkeypatch.setenv('TORCH_HOME', str(tmp_path / 'cache'))
        assert 'cannot be read' in refuses(tensors_of, (tmp_path / 'absent.pth').as_uri())

    @pytest.mark.parametrize('writer', ['torch', 'torch legacy', 'pickle'])
    @pytest.mark.parametrize(
        ('function', 'name'),
        [(os.mkdir, f'{os.name}.mkdir'), (exec, 'exec')],
        ids=['mkdir', 'exec'],
    )
    def test_runs_no_code(self, tmp_path, writer, function, name):
        canary, path = tmp_path / 'canary', tmp_path / 'weights.pth'
        argument = str(canary) if function is os.mkdir else f'import os; os.mkdir({str(canary)!r})'
        content = dict(state_dict=WEIGHTS, evil=Calls(function, argument))
        if writer == 'pickle':
            path.write_bytes(pickle.dumps(content, 2))
        else:
            save(tmp_path, content, _use_new_zipfile_serialization=writer == 'torch')
        assert 'refused: it asks for ' in refuses(tensors_of, str(path))
        assert not canary.exists()

        if writer != 'pickle':
            torch.load(path, weights_only=False)
            assert canary.exists(), 'the file is harmless, so the test shows nothing'

    @pytest.mark.parametrize('content', [b'', b'text\n', b'\x80\x02]q\x00.', b'PK\x03\x04'])
    @pytest.mark.parametrize('name', ['weights.pth', 'weights.safetensors'])
    def test_no_checkpoint(self, tmp_path, content, name):
        path = tmp_path / name
        path.write_bytes(content)
        assert 'cannot be read as weights: ' in refuses(tensors_of, str(path))


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


class TestClassNames:
    @pytest.mark.parametrize(
        ('metadata', 'expected'),
        [
            (dict(classes='["b", "a\\u200b"]'), ('b', 'a\u200b')),
            (dict(classes='[[['), ()),
            (dict(classes='3'), ()),
            (None, ()),
        ],
    )
    def test_of_safetensors(self, metadata, expected, tmp_path):
        path = str(tmp_path / 'a.safetensors')
        save_file(dict(a=torch.zeros(1)), path, metadata)
        assert class_names(load_checkpoint(path), path) == expected

    @pytest.mark.parametrize(
        ('meta', 'expected'),
        [
            (dict(dataset_meta=dict(classes=('b', 3))), ('b', '3')),
            (dict(dataset_meta=3), ()),
            (3, ()),
        ],
    )
    def test_of_a_pickle(self, meta, expected, tmp_path):
        path = str(tmp_path / 'a.pth')
        torch.save(dict(meta=meta), path)
        assert class_names(load_checkpoint(path), path) == expected

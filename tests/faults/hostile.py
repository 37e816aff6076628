"""Damaged and hostile files, read in this process: one function for each kind of attempt.

Each function returns what happened, ``'refused'``, ``'held'`` or ``'listed'``. It raises an
AssertionError if a wrong result was returned; any other exception is also a failure.
"""

from __future__ import annotations

import contextlib
import copy
import functools
import importlib
import io
import logging
import os
import pickle
import random
import shutil
import struct
import subprocess
import sys
import tarfile
import time
import zlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Thread
from typing import Any
from unittest import mock

import torch
from faults.runs import configure
from helpers import NORMALIZATION, image_folder, resnet, train
from mmengine.config import Config

from mldr_kd_mm import ConfigError, cli
from mldr_kd_mm.datasets import ImageFolder
from mldr_kd_mm.engine.resume_check import compare_configs
from mldr_kd_mm.engine.starting_point import RunDirectory
from mldr_kd_mm.engine.training_state import check_training_state
from mldr_kd_mm.models.distillers.teacher_cache import TeacherCache
from mldr_kd_mm.structures.view import View
from mldr_kd_mm.utils import download
from mldr_kd_mm.utils.archive import extract
from mldr_kd_mm.utils.checkpoint import load_checkpoint
from mldr_kd_mm.utils.run_identity import RunIdentity
from mldr_kd_mm.utils.safe_config import parse_config
from mldr_kd_mm.utils.safe_pickle import load_pickle

OWN, OTHER = 'a' * 32, 'b' * 32
WEIGHTS = {'a': torch.arange(1000.0), 'b': torch.ones(3, 4)}
WRONG_VALUES = (None, -1, 2**70, 1.5, float('nan'), '', 'x', '../..', [], [None], {}, {'': 1}, True)


@dataclass
class Attempt:
    """One attempt to break something.

    Args:
        folder: Folder in which the attempt may write.
        canary: Path that hostile code would create.
        outside: Folder that must not change.
        random: Source of all random choices.
        shared: Folder of what all attempts share.
    """

    folder: Path
    canary: Path
    outside: Path
    random: random.Random
    shared: Path

    def path(self, name: str, content: bytes) -> Path:
        """Write a file of the attempt."""
        path = self.folder / name
        path.write_bytes(content)
        return path


def refused(function: Callable[[], Any], kinds: Any = ConfigError) -> bool:
    """Return whether a call ends in a printable one-line error."""
    try:
        function()
    except kinds as error:
        assert str(error).isprintable(), f'not one line: {error!r}'
        return True
    return False


def damage(content: bytes, random: random.Random) -> bytes:
    """Truncate, flip, zero or lengthen bytes at a random place."""
    place, size = random.randrange(len(content)), random.randrange(1, 200)
    flipped = bytes([content[place] ^ 1 << random.randrange(8)])
    return random.choice(
        [
            content[:place],
            content[:place] + flipped + content[place + 1 :],
            content[:place] + bytes(size) + content[place + size :],
            content[:place] + random.randbytes(size) + content[place:],
            content[:place] + content[place + size :],
        ]
    )


def saved(content: Any, **kwargs: Any) -> bytes:
    """Return the content of a checkpoint."""
    buffer = io.BytesIO()
    torch.save(content, buffer, **kwargs)
    return buffer.getvalue()


def equal(one: Any, other: Any) -> bool:
    """Return whether two dicts of tensors are bitwise equal."""
    return one.keys() == other.keys() and all(torch.equal(one[n], other[n]) for n in other)


def damaged_checkpoint(attempt: Attempt) -> str:
    path = attempt.path('a.pth', damage(saved(WEIGHTS), attempt.random))
    found: dict = {}
    if refused(lambda: found.update(load_checkpoint(str(path)))):
        return 'refused'
    assert equal(found, WEIGHTS), 'other weights were loaded'
    return 'held'


def joined_archives(attempt: Attempt) -> str:
    other = saved({name: value + 1 for name, value in WEIGHTS.items()})
    between = attempt.random.randbytes(attempt.random.choice([0, 0, 1, 64]))
    path = attempt.path('a.pth', saved(WEIGHTS) + between + other)
    assert refused(lambda: load_checkpoint(str(path))), 'one of two archives was loaded'
    return 'refused'


STEPS = {
    'pair': b'q\x01h\x01\x86',
    'triple': b'q\x01h\x01h\x01\x87',
    'list': b'q\x01]q\x02h\x01ah\x01aq\x01',
    'dict': b'q\x01}q\x02K\x00h\x01sK\x01h\x01sq\x01',
}


def shared_parts(attempt: Attempt) -> str:
    """An object of shared parts that takes up to 3 ** 60 objects if it is copied."""
    first, depth = (
        attempt.random.choice([b')', b']', b'}', b'K\x01']),
        attempt.random.randint(30, 60),
    )
    steps = b''.join(attempt.random.choice(list(STEPS.values())) for _ in range(depth))
    key = b'X' + struct.pack('<I', 11) + b'fine_labels'
    content = b'\x80\x02}' + key + first + steps + b's.'
    read = attempt.random.choice([load_pickle, load_checkpoint])
    path = attempt.path('a.pkl', content)
    assert refused(lambda: read(str(path))), 'a bomb was loaded'
    return 'refused'


class Forged:
    """Object whose pickle calls a function when it is loaded."""

    def __init__(self, *call: Any) -> None:
        self.call = call

    def __reduce__(self) -> tuple:
        return self.call[0], self.call[1:]


def forged_type(attempt: Attempt) -> str:
    canary = str(attempt.canary)
    value: Any = Forged(
        *attempt.random.choice(
            [
                (os.mkdir, canary),
                (os.system, f'mkdir {canary}'),
                (exec, f'__import__("os").mkdir({canary!r})'),
                (eval, f'__import__("os").mkdir({canary!r})'),
                (subprocess.check_call, ['mkdir', canary]),
                (shutil.rmtree, str(attempt.outside)),
                (open, canary, 'w'),
                (importlib.import_module, _evil_module(attempt)),
                (torch.save, {}, canary),
            ]
        )
    )
    for _ in range(attempt.random.randrange(6)):
        wraps = [lambda v: [v], lambda v: (1, v), lambda v: {'a': v}, lambda v: {'state_dict': v}]
        value = attempt.random.choice(wraps)(value)
    content = {'state_dict': dict(WEIGHTS), 'optimizer': value}
    if attempt.random.random() < 0.3:
        path = attempt.path(
            'a.pkl', pickle.dumps(content['optimizer'], attempt.random.randrange(6))
        )
        read = load_pickle
    else:
        is_zip = attempt.random.random() < 0.7
        path = attempt.path('a.pth', saved(content, _use_new_zipfile_serialization=is_zip))
        read = load_checkpoint
    assert refused(lambda: read(str(path))), 'a forged type was loaded'
    return 'refused'


def _evil_module(attempt: Attempt) -> str:
    name = f'evil{attempt.random.getrandbits(60)}'
    attempt.path(f'{name}.py', f'import os\nos.mkdir({str(attempt.canary)!r})\n'.encode())
    return name


def wrong_type(attempt: Attempt) -> str:
    """A field of the training state has another type."""
    content = copy.deepcopy(_content(attempt.shared))
    part = {name: content[name] for name in ('meta', 'message_hub')}
    parent, key = attempt.random.choice(list(_dict_items(part)))
    parent[key] = attempt.random.choice(WRONG_VALUES)
    content.update(part)
    return 'refused' if refused(lambda: check_training_state(content, 'resume')) else 'held'


def _dict_items(value: Any) -> Iterator[tuple[Any, Any]]:
    """Yield container and key for each value in nested dicts and lists."""
    if isinstance(value, (dict, list)):
        for key in value if isinstance(value, dict) else range(len(value)):
            yield value, key
            yield from _dict_items(value[key])


def _run_directory(attempt: Attempt) -> Path:
    folder = attempt.folder / 'run'
    folder.mkdir()
    for number in (1, 2, 3):
        _save(folder / f'epoch_{number}.pth', number, OWN)
    RunIdentity(OWN, 'old').write(folder)
    (folder / 'last_checkpoint').write_text(str(folder / 'epoch_3.pth'))
    return folder


def _save(path: Path, epoch: int, run: str | None) -> None:
    own = dict(run=dict(id=run)) if run else {}
    torch.save(dict(meta=dict(epoch=epoch, iter=10 * epoch, **own)), path)


def _start(folder: Path) -> str | None:
    directory = RunDirectory(str(folder), str(folder), {'.pth'}, logging.getLogger('campaign'))
    return directory.find_start('new', True, None, 'part2').checkpoint


def damaged_last_checkpoint(attempt: Attempt) -> str:
    folder = _run_directory(attempt)
    right = str(folder / 'epoch_3.pth').encode()
    texts = [
        b'',
        bytes(64),
        attempt.random.randbytes(50),
        right[: attempt.random.randrange(len(right))],
        str(attempt.outside / 'epoch_9.pth').encode(),
        damage(right, attempt.random),
        b'../' * attempt.random.randrange(9) + b'epoch_9.pth',
    ]
    (folder / 'last_checkpoint').write_bytes(attempt.random.choice(texts))
    assert _start(folder) == str(folder / 'epoch_3.pth')
    return 'held'


def other_checkpoints(attempt: Attempt) -> str:
    """A directory, perhaps copied, also has damaged, foreign and linked checkpoints."""
    folder = _run_directory(attempt)
    if attempt.random.random() < 0.3:
        folder = Path(shutil.copytree(folder, attempt.folder / 'copy'))
    newest = 0
    for number in (1, 2, 4, 5, 6, 3):  # last_checkpoint names the third
        path = folder / f'epoch_{number}.pth'
        fault = attempt.random.choice(['own', 'damaged', 'other', 'without', 'link', 'absent'])
        path.unlink(missing_ok=True)
        if fault == 'link':
            path.symlink_to(attempt.outside / 'other.pth')
        elif fault != 'absent':
            _save(path, number, {'other': OTHER, 'without': None}.get(fault, OWN))
        if fault == 'damaged':
            os.truncate(path, attempt.random.randrange(path.stat().st_size))
        newest = number if fault == 'own' else newest
    found: list = []
    if refused(lambda: found.append(_start(folder))):
        assert not newest, 'its own checkpoint was refused'
        return 'refused'
    assert found == [str(folder / f'epoch_{newest}.pth')], found
    return 'held'


CHECKPOINT = dict(
    type='AtomicCheckpointHook', interval=1, max_keep_ckpts=2, save_best='accuracy/top1'
)


def _train(folder: Path, max_epochs: int, **kwargs: Any) -> Any:
    model = kwargs.pop('model', resnet(data_preprocessor=dict(NORMALIZATION)))
    hooks = dict(checkpoint=CHECKPOINT, exact_resume=dict(type='ExactResumeHook'))
    return train(model, folder, max_epochs=max_epochs, default_hooks=hooks, **kwargs)


@functools.lru_cache(1)
def _run(shared: Path) -> Path:
    """Return the work directory of a run of two epochs."""
    _train(shared / 'finished', 2)
    return shared / 'finished'


@functools.lru_cache(1)
def _content(shared: Path) -> dict:
    return torch.load(_run(shared) / 'epoch_2.pth', weights_only=False)


def paths_in_checkpoint(attempt: Attempt) -> str:
    """The message hub names files and folders elsewhere; the run is resumed or forked."""
    folder = Path(shutil.copytree(_run(attempt.shared), attempt.folder / 'run'))
    names = [
        str(attempt.outside),
        f'{attempt.outside}/file.pth',
        '../outside/file.pth',
        '../outside/',
        '/',
        '..',
        '',
        'epoch_1.pth\0',
    ]
    (folder / 'link').symlink_to(attempt.outside / 'file.pth')
    content = copy.deepcopy(_content(attempt.shared))
    info = content['message_hub']['runtime_info']
    for field in ('interim_ckpt', 'last_ckpt', 'best_ckpt'):
        info[field] = attempt.random.choice([*names, 'link'])
    info['outdated_ckpts'] = attempt.random.sample(names, 4)
    content['message_hub']['resumed_keys'].update(dict.fromkeys(info, True))
    torch.save(content, folder / 'epoch_2.pth')
    is_fork = attempt.random.random() < 0.5
    before = files(folder) if is_fork else None
    work_dir = attempt.folder / 'fork' if is_fork else folder
    start = str(folder / 'epoch_2.pth') if is_fork else None
    if refused(lambda: _train(work_dir, 3, resume=True, load_from=start)):
        return 'refused'
    assert (work_dir / 'epoch_3.pth').is_file()
    assert not is_fork or files(folder) == before, 'the original of a fork has changed'
    return 'held'


def files(folder: Path) -> dict[str, bytes]:
    """Return the content of all files in a folder."""
    return {str(p): p.read_bytes() for p in sorted(folder.rglob('*')) if p.is_file()}


def changed_run(attempt: Attempt) -> str:
    """A run is really resumed with another setting."""
    folder = Path(shutil.copytree(_run(attempt.shared), attempt.folder / 'run'))
    rate, epochs = attempt.random.uniform(1e-4, 1e-2), attempt.random.choice([3, 4])
    wide = resnet(data_preprocessor=dict(NORMALIZATION))
    wide['backbone'].update(base_channels=16)
    wide['head'].update(in_channels=128)
    options: dict = attempt.random.choice(
        [
            dict(optim_wrapper=dict(optimizer=dict(type='SGD', lr=rate))),
            dict(optim_wrapper=dict(optimizer=dict(type='AdamW', lr=rate))),
            dict(randomness=dict(seed=1)),
            dict(model=wide),
        ]
    )
    before, found = files(folder), []
    if refused(lambda: found.append(_train(folder, epochs, resume=True, **options))):
        checkpoints = {n: c for n, c in files(folder).items() if n.endswith('.pth')}
        assert checkpoints == {n: c for n, c in before.items() if n.endswith('.pth')}
        assert 'SGD' not in str(options), 'another learning rate was refused'
        return 'refused'
    assert 'SGD' in str(options), f'accepted: {options}'
    assert found[0].epoch == epochs and found[0].optim_wrapper.get_lr()['lr'] == [rate]
    return 'listed'


SILENT = ('num_workers', 'persistent_workers', 'pin_memory', 'init_cfg', 'logger', 'fused')
ANOTHER_RUN = ('model.student.type', 'optim_wrapper.optimizer.type', 'randomness.seed')


def changed_config(attempt: Attempt) -> str:
    """Any one field of the config differs from the stored one."""
    config = configure(attempt.folder / 'run')
    parts = ('model', 'optim_wrapper', 'param_scheduler', 'train_cfg', 'train_dataloader')
    config = {
        name: config[name] for name in (*parts, 'val_dataloader', 'val_evaluator', 'randomness')
    }
    other = copy.deepcopy(config)
    field, parent, key = attempt.random.choice(list(_leaves(other)))
    parent[key] = attempt.random.choice([12345, 'another', 0.123])
    stored, now = (parse_config(Config(each).pretty_text) for each in (config, other))
    changes = compare_configs(stored, now)
    fields = [change.field for change in (*changes.refused, *changes.applied)]
    if not fields:
        assert any(name in field for name in SILENT), f'{field} changed without a word'
        return 'held'
    assert all(field.startswith(name) or name.startswith(field) for name in fields), fields
    assert field not in ANOTHER_RUN or changes.refused, f'{field} is accepted'
    return 'refused' if changes.refused else 'listed'


def _leaves(value: Any, name: str = '') -> Iterator[tuple[str, Any, Any]]:
    """Yield name, container and key of each plain value in nested dicts and lists."""
    pairs = value.items() if isinstance(value, dict) else enumerate(value)
    for key, item in list(pairs):
        field = f'{name}.{key}' if name else str(key)
        if isinstance(item, (dict, list)):
            yield from _leaves(item, field)
        elif isinstance(value, (dict, list)):
            yield field, value, key


def hostile_run(attempt: Attempt) -> str:
    """A stored config has a dotted type at a random depth, and a command reads it."""
    folder = Path(shutil.copytree(_run(attempt.shared), attempt.folder / 'run'))
    config = parse_config(_content(attempt.shared)['meta']['cfg'])
    canary = str(attempt.canary)
    evil = attempt.random.choice(
        [
            dict(type='os.mkdir', path=canary),
            dict(type='os.system', command=f'mkdir {canary}'),
            dict(type='subprocess.check_call', args=['mkdir', canary]),
            dict(type='builtins.open', file=canary, mode='w'),
            dict(type=f'{_evil_module(attempt)}.ResNet', depth=18),
        ]
    )
    parts = {name: config[name] for name in ('model', 'train_dataloader', 'val_dataloader')}
    parent, key = attempt.random.choice([p for p in _dict_items(parts) if _is_built(p[0][p[1]])])
    parent[key] = evil
    text = Config(config | parts).pretty_text
    for path in folder.glob('*/vis_data/config.py'):
        path.write_text(text)
    content = copy.deepcopy(_content(attempt.shared))
    content['meta']['cfg'] = text
    checkpoint = folder / 'epoch_2.pth'
    torch.save(content, checkpoint)
    command = attempt.random.choice(
        [
            ['report', str(folder), '--out', str(attempt.folder / 'report')],
            ['export', str(checkpoint), str(attempt.folder / 'student.pth')],
            ['info', str(checkpoint)],
        ]
    )
    with mock.patch('sys.path', [*sys.path, str(attempt.folder)]):
        return _command(command)


def _is_built(value: Any) -> bool:
    """Return whether mmengine builds a value of a config."""
    return isinstance(value, dict) and 'type' in value


def _command(arguments: list[str]) -> str:
    text = io.StringIO()
    with contextlib.redirect_stdout(text), contextlib.redirect_stderr(text):
        try:
            cli.main(arguments)
        except SystemExit as end:
            if not end.code:
                return 'held'
            assert end.code in (1, 2) and 'Traceback' not in text.getvalue(), text.getvalue()
            return 'refused'
    return 'held'


def config_text(attempt: Attempt) -> str:
    """The stored config is a program."""
    canary = str(attempt.canary)
    value = attempt.random.choice(
        [
            f'__import__("os").mkdir({canary!r})',
            f'open({canary!r}, "w")',
            f'(lambda: open({canary!r}, "w"))()',
            f'[open({canary!r}, "w") for _ in "a"]',
            f'f"{{open({canary!r}, chr(119))}}"',
            'a' + '.a' * 10 ** attempt.random.randint(1, 5),
            '"a" * 10 ** 10',
        ]
    )
    for _ in range(attempt.random.randrange(8)):
        value = attempt.random.choice(['[{}]', 'dict(a={})', '({},)', '-{}']).replace('{}', value)
    assert refused(lambda: parse_config(f'model = {value}')), 'a program was accepted'
    return 'refused'


def archive(attempt: Attempt) -> str:
    members = {'set/train': attempt.random.randbytes(5000), 'set/test': b'2'}
    path, folder = attempt.folder / 'a.tar.gz', attempt.folder / 'a/b/folder'
    folder.mkdir(parents=True)
    hostile = attempt.random.choice(
        [
            dict(name='../' * attempt.random.randint(1, 5) + 'outside/file.pth'),
            dict(name=str(attempt.outside / 'file.pth')),
            dict(name='set/train', type=tarfile.SYMTYPE, linkname=str(attempt.outside)),
            dict(name='set/train', type=tarfile.LNKTYPE, linkname='../../../outside/file.pth'),
            dict(name='set/train', type=attempt.random.choice([tarfile.CHRTYPE, tarfile.FIFOTYPE])),
            dict(name='bomb', size=10**8),
            dict(name='s', pax_headers={'GNU.sparse.size': str(10**12), 'GNU.sparse.map': '0,0'}),
            None,
        ]
    )
    with tarfile.open(path, 'w:gz', compresslevel=1, format=tarfile.PAX_FORMAT) as tar:
        for fields in ([hostile] if hostile else []) + [dict(name=n) for n in members]:
            info = tarfile.TarInfo()
            for name, value in fields.items():
                setattr(info, name, value)
            content = members.get(info.name, b'')
            info.size = info.size or (0 if fields is hostile else len(content))
            tar.addfile(info, io.BytesIO(content or bytes(info.size)))
    if hostile is None:
        path.write_bytes(damage(path.read_bytes(), attempt.random))
    if refused(lambda: extract(path, folder, 10**6), (ValueError, OSError)):
        return 'refused'
    written = files(attempt.folder / 'a')
    inside = {str(folder / name): content for name, content in members.items()}
    # The checksum of a damaged archive is checked before; an absolute name loses its slash.
    assert hostile is None or written.items() >= inside.items(), written.keys()
    return 'held'


def image(attempt: Attempt) -> str:
    """A damaged image, or one whose header announces a huge size."""
    root = attempt.folder / 'images'
    image_folder(root, {'': 2}, 'ab')
    dataset = ImageFolder(str(root), pipeline=[dict(type='LoadImageFromFile')])
    path = Path(dataset.get_data_info(0)['img_path'])
    content = path.read_bytes()
    if attempt.random.random() < 0.3:
        sizes = (attempt.random.randrange(1, 2**31) for _ in range(2))
        head = b'IHDR' + struct.pack('>II', *sizes) + content[24:29]
        content = content[:12] + head + struct.pack('>I', zlib.crc32(head)) + content[33:]
    else:
        content = damage(content, attempt.random)
    path.write_bytes(content)
    found: dict = {}
    if refused(lambda: found.update(dataset[0])):
        return 'refused'
    assert found['img'].nbytes < 179e6 * 3
    return 'held'


CACHE = dict(views=2, samples=6, dtype='fp32', seed=0, mixing=None, teacher='abc', batch_size=3)
OUTPUTS = dict(logits=dict(tap='logits', shape=[3]), stage1=dict(tap='layer1', shape=[4, 2, 2]))


def teacher_cache(attempt: Attempt) -> str:
    """Bytes are changed, entries swapped, files truncated or exchanged, or a setting differs."""

    def teach(indices: list[int]) -> dict:
        shapes = {name: output['shape'] for name, output in OUTPUTS.items()}
        return {
            name: torch.stack([torch.full(shape, float(i + len(name))) for i in indices])
            for name, shape in shapes.items()
        }

    def read(cache: TeacherCache, indices: list[int]) -> dict:
        views = [View(0, 0, index) for index in indices]
        return cache(views, torch.device('cpu'), lambda: teach(indices))

    cache = TeacherCache(attempt.folder / 'cache', CACHE, OUTPUTS)
    read(cache, [0, 1, 2])
    read(cache, [3, 4, 5])
    name, size = attempt.random.choice([('logits', 12), ('stage1', 64)])
    fault = attempt.random.choice(['damage', 'swap', 'truncate', 'exchange', 'setting'])
    changed = dict(CACHE)
    for suffix, width in (('bin', size), ('crc', 4)):
        path = cache.folder / f'{name}.{suffix}'
        content = path.read_bytes()
        if fault == 'damage' and attempt.random.random() < 0.7:
            content = damage(content, attempt.random).ljust(len(content))[: len(content)]
        elif fault == 'swap':
            one, two = content[:width], content[width : 2 * width]
            content = two + one + content[2 * width :]
        elif fault == 'truncate':
            content = content[: attempt.random.randrange(len(content))]
        elif fault == 'exchange':
            content = content[-width:] * (len(content) // width)
        path.write_bytes(content)
    if fault == 'setting':
        changed[attempt.random.choice(['batch_size', 'teacher', 'seed', 'mixing'])] = 'another'
    indices, found = attempt.random.sample(range(6), 3), {}
    is_open = attempt.random.random() < 0.5 and fault != 'setting'

    def use() -> None:
        used = cache if is_open else TeacherCache(cache.folder, changed, OUTPUTS)
        found.update(read(used, indices))

    if refused(use):
        return 'refused'
    assert fault != 'setting', 'a cache of other settings was read'
    assert equal(found, teach(indices)), f'{fault}: other outputs were read'
    return 'held'


class Server(BaseHTTPRequestHandler):
    """Sends ``body`` with ``headers``, slowly if ``pause`` is not 0."""

    body, headers_to_send, pause = b'', {}, 0.0

    def do_GET(self) -> None:
        """Answer."""
        self.send_response(200)
        for name, value in self.headers_to_send.items():
            self.send_header(name, str(value))
        self.end_headers()
        with contextlib.suppress(OSError):
            for start in range(0, len(self.body), 10 if self.pause else 10**6):
                self.wfile.write(self.body[start : start + (10 if self.pause else 10**6)])
                time.sleep(self.pause)

    def log_message(self, *_: Any) -> None:
        """Log nothing."""


@functools.lru_cache(1)
def _address() -> str:
    server = ThreadingHTTPServer(('127.0.0.1', 0), Server)
    server.daemon_threads = True
    Thread(target=server.serve_forever, daemon=True).start()
    return f'http://127.0.0.1:{server.server_port}'


def downloaded(attempt: Attempt) -> str:
    """A download is cut, a page, damaged, slow or complete."""
    content = saved(WEIGHTS)
    cut = content[: attempt.random.randrange(len(content))]
    page = b'<!DOCTYPE html>' + attempt.random.randbytes(50)
    length = {'Content-Length': len(content)}
    Server.body, Server.headers_to_send, Server.pause = attempt.random.choice(
        [
            (cut, length, 0),
            (cut, {}, 0),
            (page, {'Content-Type': 'text/html'}, 0),
            (page, {'Content-Length': len(page)}, 0),
            (damage(content, attempt.random), {}, 0),
            (content, length, 0.05),
            (content, {'Content-Length': 10**14}, 0),
            (content, length, 0),
        ]
    )
    found: dict = {}
    home = attempt.folder / 'home'
    with (
        mock.patch.dict(os.environ, TORCH_HOME=str(home)),
        mock.patch.object(download, 'DOWNLOAD_TIMEOUT', 0.2),
    ):
        if refused(lambda: found.update(load_checkpoint(f'{_address()}/a.pth'))):
            assert not files(home), 'an incomplete download was kept'
            return 'refused'
    assert equal(found, WEIGHTS), 'other weights were downloaded'
    return 'held'


KINDS: dict[str, tuple[Callable[[Attempt], str], int]] = {
    'damaged_checkpoint': (damaged_checkpoint, 90),
    'joined_archives': (joined_archives, 30),
    'shared_parts': (shared_parts, 60),
    'forged_type': (forged_type, 90),
    'wrong_type': (wrong_type, 90),
    'damaged_last_checkpoint': (damaged_last_checkpoint, 60),
    'other_checkpoints': (other_checkpoints, 80),
    'paths_in_checkpoint': (paths_in_checkpoint, 25),
    'changed_run': (changed_run, 25),
    'changed_config': (changed_config, 80),
    'hostile_run': (hostile_run, 50),
    'config_text': (config_text, 40),
    'archive': (archive, 50),
    'image': (image, 40),
    'teacher_cache': (teacher_cache, 60),
    'download': (downloaded, 50),
}

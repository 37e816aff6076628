"""CIFAR-100 on small artificial data in the official layout, and on the real data if present."""

from __future__ import annotations

import hashlib
import json
import os
import subprocess
import sys
import tarfile
from pathlib import Path

import mmpretrain.datasets
import numpy as np
import pytest
import torch
from helpers import make_cifar100, make_split, run_ranks, write_file
from mmengine.dataset import pseudo_collate
from mmengine.registry import DATASETS as MMENGINE_DATASETS
from mmengine.registry import DefaultScope
from torch.utils.data import DataLoader

from mldr_kd_mm.datasets import VerifiedCIFAR100
from mldr_kd_mm.registry import DATASETS
from mldr_kd_mm.utils.errors import ConfigError

PROJECT = Path(__file__).resolve().parents[2]
SHARED_DATA = PROJECT.parent / 'shared' / 'data'
NAMES = VerifiedCIFAR100.METAINFO['classes']


def md5(path: Path) -> str:
    return hashlib.md5(path.read_bytes()).hexdigest()


def snapshot(root: Path) -> dict[str, tuple[bytes, int]]:
    """Return content and modification time of every file below ``root``."""
    return {
        str(path.relative_to(root)): (path.read_bytes(), path.stat().st_mtime_ns)
        for path in root.rglob('*')
        if path.is_file()
    }


def official_attributes(folder: Path) -> dict:
    """Write a data set and its archive; return class attributes that make them official."""
    root = make_cifar100(folder)
    archive = folder / 'archive.tar.gz'
    with tarfile.open(archive, 'w:gz') as tar:
        tar.add(root / 'cifar-100-python', 'cifar-100-python')
    return dict(
        url=archive.as_uri(),
        tgz_md5=md5(archive),
        train_list=[['train', md5(root / 'cifar-100-python' / 'train')]],
        test_list=[['test', md5(root / 'cifar-100-python' / 'test')]],
    )


@pytest.fixture
def official(tmp_path, monkeypatch) -> Path:
    """Return the root of a data set with official checksums and a downloadable archive."""
    folder = tmp_path / 'official'
    for name, value in official_attributes(folder).items():
        monkeypatch.setattr(VerifiedCIFAR100, name, value)
    return folder


@pytest.fixture
def other(tmp_path) -> Path:
    """Return the root of a data set whose checksums are not the official ones."""
    return make_cifar100(tmp_path / 'other')


def test_reads_what_mmpretrain_reads(other, monkeypatch):
    theirs = mmpretrain.datasets.CIFAR100
    monkeypatch.setattr(theirs, 'train_list', [['train', None]])  # None: any checksum
    monkeypatch.setattr(theirs, 'test_list', [['test', None]])
    for split, length in (('train', 200), ('test', 100)):
        expected = theirs(data_root=str(other), split=split)
        dataset = VerifiedCIFAR100(data_root=str(other), split=split, verify=False)
        assert len(dataset) == len(expected) == length
        assert dataset.metainfo['classes'] == expected.metainfo['classes']
        for ours, info in zip(dataset, expected, strict=True):
            assert ours['img'].shape == (32, 32, 3)
            assert ours['img'].dtype == np.uint8
            assert type(ours['gt_label']) is int
            assert ours['gt_label'] == info['gt_label']
            np.testing.assert_array_equal(ours['img'], info['img'])


def test_accepts_the_official_checksums(official):
    assert len(VerifiedCIFAR100(data_root=str(official), download=False)) == 200


def test_refuses_other_checksums_and_touches_nothing(official, other):
    # One pixel of one training image differs from the official set.
    content = make_split(per_class=2, seed=0)
    content['data'][0, 0] ^= 1
    write_file(other / 'cifar-100-python' / 'train', content)
    before = snapshot(other)
    with pytest.raises(ConfigError) as caught:
        VerifiedCIFAR100(data_root=str(other), download=True)
    message = str(caught.value)
    assert '\n' not in message
    assert f'data_root={str(other)!r}' in message
    assert str(other / 'cifar-100-python' / 'train') in message
    assert 'verify=False in each data set of the config: train_dataloader.dataset.ver' in message
    assert snapshot(other) == before
    assert len(VerifiedCIFAR100(data_root=str(other), verify=False)) > 0


def test_missing_files_without_download(tmp_path):
    with pytest.raises(ConfigError) as caught:
        VerifiedCIFAR100(data_root=str(tmp_path), download=False)
    message = str(caught.value)
    assert '\n' not in message
    assert f'data_root={str(tmp_path)!r} lacks cifar-100-python/train' in message
    assert VerifiedCIFAR100.url in message
    assert 'download=True' in message
    assert list(tmp_path.iterdir()) == []


def test_missing_files_without_network(tmp_path, monkeypatch):
    monkeypatch.setattr(VerifiedCIFAR100, 'url', (tmp_path / 'no such archive').as_uri())
    with pytest.raises(ConfigError, match='download failed .*No such file.*; unpack') as caught:
        VerifiedCIFAR100(data_root=str(tmp_path / 'data'))
    assert '\n' not in str(caught.value)
    assert isinstance(caught.value.__cause__, OSError)
    assert snapshot(tmp_path) == {}


def test_missing_files_in_remote_storage(tmp_path, monkeypatch):
    monkeypatch.setattr('mldr_kd_mm.datasets.cifar.get_file_backend', lambda path: object())
    with pytest.raises(ConfigError, match='only local directories support download'):
        VerifiedCIFAR100(data_root=str(tmp_path))


@pytest.mark.parametrize('verify', [True, False])
def test_downloads_missing_files(official, tmp_path, verify):
    root = tmp_path / 'data'
    dataset = VerifiedCIFAR100(data_root=str(root), split='test', verify=verify)
    assert len(dataset) == 100
    assert sorted(snapshot(root)) == [
        'cifar-100-python.tar.gz',
        *(f'cifar-100-python/{name}' for name in ('meta', 'test', 'train')),
    ]
    assert len(list(root.iterdir())) == 2, 'the temporary directory is still there'


def test_an_archive_that_is_there_needs_no_network(official, tmp_path, monkeypatch):
    root = tmp_path / 'data'
    root.mkdir()
    (root / VerifiedCIFAR100.filename).write_bytes((official / 'archive.tar.gz').read_bytes())
    monkeypatch.setattr(VerifiedCIFAR100, 'url', (tmp_path / 'no such archive').as_uri())
    assert len(VerifiedCIFAR100(data_root=str(root))) == 200


def test_a_download_completes_a_set_and_overwrites_nothing(official, tmp_path):
    root = tmp_path / 'data'
    folder = root / 'cifar-100-python'
    folder.mkdir(parents=True)
    (folder / 'train').write_bytes((official / 'cifar-100-python' / 'train').read_bytes())
    (folder / 'meta').write_text('my own notes')
    before = snapshot(root)
    assert len(VerifiedCIFAR100(data_root=str(root), split='test')) == 100
    after = snapshot(root)
    assert {name: after[name] for name in before} == before
    assert after['cifar-100-python/test'][0] == (official / 'cifar-100-python/test').read_bytes()


def test_an_archive_with_another_checksum_is_kept(official, tmp_path):
    root = tmp_path / 'data'
    root.mkdir()
    (root / VerifiedCIFAR100.filename).write_text('half a download')
    before = snapshot(root)
    with pytest.raises(ConfigError, match='tar.gz does not have the official MD5'):
        VerifiedCIFAR100(data_root=str(root))
    assert snapshot(root) == before


@pytest.mark.parametrize('fault', ['another file', 'too large', 'damaged', 'a link'])
def test_a_download_that_is_no_set_leaves_nothing(official, tmp_path, monkeypatch, fault):
    """This holds even if its checksum is the official one."""
    archive = official / 'archive.tar.gz'
    if fault == 'another file':
        archive.write_text('a page that asks for a password')
        message = 'does not have the official MD5 checksum'
    elif fault == 'too large':
        monkeypatch.setattr('mldr_kd_mm.datasets.cifar.MAX_BYTES', 100_000)
        message = 'it is larger than 0 MB'
    else:
        if fault == 'damaged':
            archive.write_bytes(archive.read_bytes()[:-100])
            message = 'Compressed file ended before'
        else:
            with tarfile.open(archive, 'w:gz') as tar:
                tar.addfile(link('cifar-100-python/train', '/etc/passwd'))
            message = 'it is damaged .*absolute path'
        monkeypatch.setattr(VerifiedCIFAR100, 'tgz_md5', md5(archive))
    root = tmp_path / 'data'
    with pytest.raises(ConfigError, match=f'lacks .* download failed .*{message}') as caught:
        VerifiedCIFAR100(data_root=str(root))
    assert str(caught.value).isprintable()
    # An archive with the official checksum is not downloaded again.
    kept = [VerifiedCIFAR100.filename] if fault in ('damaged', 'a link') else []
    assert [path.name for path in root.iterdir()] == kept


def link(name: str, target: str) -> tarfile.TarInfo:
    info = tarfile.TarInfo(name)
    info.type, info.linkname = tarfile.SYMTYPE, target
    return info


def test_official_files_are_not_mixed_with_others(official, other):
    (other / 'cifar-100-python' / 'test').unlink()
    before = snapshot(other)
    with pytest.raises(ConfigError, match=r'lacks cifar-100-python/test, .*verify=False'):
        VerifiedCIFAR100(data_root=str(other), verify=False, download=True)
    assert snapshot(other) == before


class Evil:
    def __init__(self, canary: Path) -> None:
        self.canary = canary

    def __reduce__(self):
        return os.mkdir, (str(self.canary),)


@pytest.mark.parametrize('place', ['value', 'label'])
def test_runs_no_code_of_a_file(other, tmp_path, place):
    canary = tmp_path / 'canary'
    content = make_split(per_class=2, seed=0)
    if place == 'value':
        content['evil'] = Evil(canary)
    else:
        content['fine_labels'][0] = Evil(canary)
    path = other / 'cifar-100-python' / 'train'
    write_file(path, content)
    with pytest.raises(ConfigError, match=r'train: refused, it asks for (posix|nt)\.mkdir'):
        VerifiedCIFAR100(data_root=str(other), verify=False)
    assert not canary.exists()


@pytest.mark.parametrize('kept', [0.0, 0.5, 0.999])
def test_refuses_a_truncated_file(other, kept):
    path = other / 'cifar-100-python' / 'train'
    content = path.read_bytes()
    path.write_bytes(content[: int(len(content) * kept)])
    with pytest.raises(ConfigError, match='train: cannot be read') as caught:
        VerifiedCIFAR100(data_root=str(other), verify=False)
    assert '\n' not in str(caught.value)


@pytest.mark.parametrize(
    ('change', 'message'),
    [
        (dict(data=None), 'must be a uint8 array'),
        (dict(data=np.zeros((200, 3072), np.float32)), 'must be a uint8 array'),
        (dict(data=np.zeros((200, 3, 32, 32), np.uint8)), 'must be a uint8 array'),
        (dict(data=np.zeros((200, 1024), np.uint8)), r'not \(200, 1024\)'),
        (dict(data=np.zeros((199, 3072), np.uint8)), "'fine_labels' must be a list of 199"),
        (dict(fine_labels=None), "'fine_labels' must be a list of 200"),
        (dict(fine_labels=[0] * 199), "'fine_labels' must be a list of 200"),
        (dict(fine_labels=[0] * 199 + [100]), "'fine_labels' holds 100, must be 0 to 99"),
        (dict(fine_labels=[0] * 199 + [-1]), "'fine_labels' holds -1"),
        (dict(fine_labels=[0] * 199 + ['apple']), "'fine_labels' holds 'apple'"),
        (dict(fine_labels=[0] * 199 + [0.5]), "'fine_labels' holds 0.5"),
    ],
)
def test_refuses_another_layout(other, change, message):
    path = other / 'cifar-100-python' / 'train'
    write_file(path, {**make_split(per_class=2, seed=0), **change})
    with pytest.raises(ConfigError, match=message) as caught:
        VerifiedCIFAR100(data_root=str(other), verify=False)
    assert str(path) in str(caught.value)
    assert '\n' not in str(caught.value)


@pytest.mark.parametrize('key', ['data', 'fine_labels'])
def test_refuses_a_missing_key(other, key):
    content = make_split(per_class=2, seed=0)
    del content[key]
    write_file(other / 'cifar-100-python' / 'train', content)
    with pytest.raises(ConfigError, match=f"must hold '{key}', holds .*'filenames'"):
        VerifiedCIFAR100(data_root=str(other), verify=False)


def test_subset(other):
    whole = VerifiedCIFAR100(data_root=str(other), verify=False)
    labels = [40, 7, 99]
    subset = dict(labels=labels, per_class=1)
    dataset = VerifiedCIFAR100(data_root=str(other), verify=False, subset=subset)
    assert dataset.metainfo['classes'] == tuple(NAMES[label] for label in labels)
    assert dataset.CLASSES == dataset.metainfo['classes']
    assert sorted(dataset.get_gt_labels()) == [0, 1, 2]
    all_labels = whole.get_gt_labels().tolist()
    for info in dataset:
        first = whole[all_labels.index(labels[info['gt_label']])]
        np.testing.assert_array_equal(info['img'], first['img'])
    assert VerifiedCIFAR100.METAINFO['classes'] == NAMES and len(NAMES) == 100


def test_memory_is_the_pixels_and_labels_and_an_image_is_a_copy(other):
    pickled = VerifiedCIFAR100(data_root=str(other), verify=False, serialize_data=False)
    dataset = VerifiedCIFAR100(data_root=str(other), verify=False)
    assert dataset.data_bytes.nbytes == 200 * 3073
    for index in (0, 199, -1, np.int64(5)):
        ours, theirs = dataset.get_data_info(index), pickled.get_data_info(index)
        assert ours['gt_label'] == theirs['gt_label']
        assert ours['sample_idx'] == theirs['sample_idx'] == index % 200
        np.testing.assert_array_equal(ours['img'], theirs['img'])
        ours['img'][:] = 0
        np.testing.assert_array_equal(dataset.get_data_info(index)['img'], theirs['img'])
    with pytest.raises(IndexError):
        dataset[200]


class Index(int):
    """An index with extra data, as a custom sampler may yield."""


def test_an_index_reaches_the_pipeline_as_it_is(other):
    index = Index(3)
    dataset = VerifiedCIFAR100(
        data_root=str(other), verify=False, pipeline=[lambda results: results]
    )
    assert dataset[index]['sample_idx'] is index


@pytest.mark.parametrize(
    ('indices', 'chosen'), [(7, range(7)), (-7, range(193, 200)), ([5, 199, 0], [5, 199, 0])]
)
def test_part_of_the_images(other, indices, chosen):
    whole = VerifiedCIFAR100(data_root=str(other), verify=False)
    for part in (
        whole.get_subset(indices),
        VerifiedCIFAR100(data_root=str(other), verify=False, indices=indices),
    ):
        assert len(part) == len(chosen)
        for ours, index in zip(part, chosen, strict=True):
            assert ours['gt_label'] == whole[index]['gt_label']
            np.testing.assert_array_equal(ours['img'], whole[index]['img'])


def test_every_spelling_is_found():
    for scope, name, is_ours in (
        ('mldr_kd_mm', 'VerifiedCIFAR100', True),
        ('mmpretrain', 'VerifiedCIFAR100', True),
        ('mldr_kd_mm', 'CIFAR100', True),
        ('mmpretrain', 'CIFAR100', False),
        ('mmpretrain', 'mldr_kd_mm.CIFAR100', True),
        ('mldr_kd_mm', 'mmpretrain.CIFAR100', False),
    ):
        for registry in (DATASETS, MMENGINE_DATASETS):
            with DefaultScope.overwrite_default_scope(scope):
                dataset = registry.build(dict(type=name, data_root='anywhere', lazy_init=True))
            assert isinstance(dataset, VerifiedCIFAR100) == is_ours, (scope, name)
            assert isinstance(dataset, mmpretrain.datasets.CIFAR100)


def test_feeds_a_pipeline_in_worker_processes(other):
    pipeline = [
        dict(type='RandomCrop', crop_size=32, padding=4),
        dict(type='RandomFlip', prob=0.5, direction='horizontal'),
        dict(type='PackInputs'),
    ]
    dataset = VerifiedCIFAR100(data_root=str(other), verify=False, pipeline=pipeline)
    loader = DataLoader(dataset, batch_size=64, num_workers=2, collate_fn=pseudo_collate)
    labels = []
    for batch in loader:
        for image in batch['inputs']:
            assert image.shape == (3, 32, 32)
            assert image.dtype == torch.uint8
        labels += [int(sample.gt_label) for sample in batch['data_samples']]
    assert labels == dataset.get_gt_labels().tolist()


TWO_PROCESSES = """
import datetime, json, sys
import torch.distributed
from helpers import leave_group
from mldr_kd_mm.datasets import VerifiedCIFAR100
from mldr_kd_mm.utils.errors import ConfigError

rank, folder, attributes = int(sys.argv[1]), sys.argv[2], json.loads(sys.argv[3])
torch.distributed.init_process_group(
    'gloo', init_method=f'file://{folder}/store', rank=rank, world_size=2,
    timeout=datetime.timedelta(seconds=60))
result = []
for keywords in (dict(download=False), dict(download=True)):
    try:
        VerifiedCIFAR100(data_root=f'{folder}/data', **keywords)
    except ConfigError as error:
        result.append(str(error))
    VerifiedCIFAR100.url = f'file://{folder}/absent'
for name, value in attributes.items():
    setattr(VerifiedCIFAR100, name, value)
result.append(len(VerifiedCIFAR100(data_root=f'{folder}/data')))
print(json.dumps(result))
leave_group()
"""


def test_two_processes_end_with_one_error_or_one_download(tmp_path):
    attributes = json.dumps(official_attributes(tmp_path / 'official'))
    outputs = run_ranks(*(('-c', TWO_PROCESSES, rank, tmp_path, attributes) for rank in (0, 1)))
    results = [json.loads(output.splitlines()[-1]) for output in outputs]
    assert results[0] == results[1]
    absent, unreachable, length = results[0]
    assert 'lacks cifar-100-python/train; unpack' in absent
    assert 'its download failed' in unreachable
    assert length == 200
    downloads = [output.count('Downloading') for output in outputs]
    assert downloads == [2, 0]  # including the download that failed


@pytest.mark.slow
@pytest.mark.skipif(
    not (SHARED_DATA / 'unpack_cifar100.py').exists(),
    reason='needs the packed CIFAR-100 in ../shared/data, which is not part of the project',
)
def test_the_real_images(tmp_path):
    unpack = [sys.executable, SHARED_DATA / 'unpack_cifar100.py', tmp_path]
    subprocess.run(
        [*unpack, '--train-parts', '0', '--limit-per-class', '5'],
        check=True,
        timeout=300,
        stdout=subprocess.DEVNULL,
    )
    with pytest.raises(ConfigError, match='verify=False'):
        VerifiedCIFAR100(data_root=str(tmp_path))
    for split in ('train', 'test'):
        dataset = VerifiedCIFAR100(data_root=str(tmp_path), split=split, verify=False)
        assert np.bincount(dataset.get_gt_labels()).tolist() == [5] * 100
        images = np.stack([info['img'] for info in dataset]) / 255
        # The published means of red, green and blue, and neighbours that resemble each other.
        np.testing.assert_allclose(images.mean((0, 1, 2)), [0.507, 0.487, 0.441], atol=0.02)
        assert np.abs(np.diff(images, axis=1)).mean() < 0.08
        assert np.abs(np.diff(images, axis=2)).mean() < 0.08

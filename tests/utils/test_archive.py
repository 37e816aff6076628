"""Archives that bomb, climb out of their folder, or are not whole."""

from __future__ import annotations

import gzip
import io
import os
import tarfile
import tracemalloc
from pathlib import Path

import pytest

from mldr_kd_mm.utils.archive import download, extract

NAMES = ['set/train', 'set/test']
LIMIT = 1_000_000


def member(name: str, content: bytes = b'', **fields) -> tuple[tarfile.TarInfo, io.BytesIO]:
    info = tarfile.TarInfo(name)
    info.size = len(content)
    for field, value in fields.items():
        setattr(info, field, value)
    return info, io.BytesIO(content)


WHOLE = [member('set/train', b'1' * 5000), member('set/test', b'2')]


def pack(folder: Path, *members) -> Path:
    path = folder / 'archive.tar.gz'
    with tarfile.open(path, 'w:gz') as tar:
        for info, content in (*members, *WHOLE):
            content.seek(0)
            tar.addfile(info, content)
    return path


@pytest.fixture
def folder(tmp_path) -> Path:
    """Where the members go; what is beside it must stay as it was."""
    path = tmp_path / 'a/b/folder'
    path.mkdir(parents=True)
    return path


def files(root: Path) -> set[str]:
    return {str(path.relative_to(root)) for path in root.rglob('*') if not path.is_dir()}


def test_takes_the_members(tmp_path, folder):
    extract(pack(tmp_path, member('set/notes~', b'x')), NAMES, folder, LIMIT)
    assert sorted(os.listdir(folder)) == ['test', 'train']
    assert (folder / 'train').read_bytes() == b'1' * 5000
    assert (folder / 'test').read_bytes() == b'2'


@pytest.mark.parametrize(
    'name', ['../../climbed', '/tmp/../climbed', 'set/../../climbed', '../set/train', './set/test']
)
@pytest.mark.parametrize('kind', [tarfile.REGTYPE, tarfile.SYMTYPE, tarfile.FIFOTYPE])
def test_nothing_else_is_written(tmp_path, folder, name, kind):
    archive = pack(tmp_path, member(name, type=kind, linkname='/etc/passwd'))
    extract(archive, NAMES, folder, LIMIT)
    assert files(tmp_path) == {'archive.tar.gz', 'a/b/folder/train', 'a/b/folder/test'}


@pytest.mark.parametrize(
    'kind',
    [tarfile.SYMTYPE, tarfile.LNKTYPE, tarfile.CHRTYPE, tarfile.BLKTYPE, tarfile.FIFOTYPE, b'5'],
)
def test_a_member_must_be_a_file(tmp_path, folder, kind):
    archive = pack(tmp_path, member('set/train', type=kind, linkname='/etc/passwd'))
    with pytest.raises(ValueError, match='its set/train is no regular file'):
        extract(archive, NAMES, folder, LIMIT)
    assert os.listdir(folder) == []


def test_a_member_that_is_missing(tmp_path, folder):
    with pytest.raises(ValueError, match='it lacks set/meta'):
        extract(pack(tmp_path), [*NAMES, 'set/meta'], folder, LIMIT)


@pytest.mark.parametrize('name', ['set/train', 'other', 'pax header'])
def test_a_bomb_is_stopped(tmp_path, folder, name):
    """Wherever its 100 MB are; neither the disk nor the memory has them."""
    zeros = bytes(100_000_000)
    bomb = member(name, zeros)
    if name == 'pax header':
        bomb = member(name, zeros, type=tarfile.XHDTYPE)
    archive = pack(tmp_path, bomb)
    assert archive.stat().st_size < 200_000
    tracemalloc.start()
    try:
        with pytest.raises(ValueError, match='it is larger than 1 MB'):
            extract(archive, NAMES, folder, LIMIT)
        assert tracemalloc.get_traced_memory()[1] < 5 * LIMIT
    finally:
        tracemalloc.stop()
    assert sum(path.stat().st_size for path in folder.iterdir()) <= LIMIT


def test_zeros_after_the_last_member_are_counted(tmp_path, folder):
    archive = pack(tmp_path)
    archive.write_bytes(archive.read_bytes() + gzip.compress(bytes(10_000_000)))
    with pytest.raises(ValueError, match='it is larger than 1 MB'):
        extract(archive, NAMES, folder, LIMIT)


def test_any_truncation_is_an_error(tmp_path, folder):
    archive = pack(tmp_path)
    content = archive.read_bytes()
    for length in range(len(content)):
        archive.write_bytes(content[:length])
        with pytest.raises(ValueError, match='it is damaged|it lacks'):
            extract(archive, NAMES, folder, LIMIT)
        for path in folder.iterdir():
            path.unlink()


@pytest.mark.parametrize('limit', [999, 1000])
def test_fetch_knows_when_to_stop(tmp_path, limit):
    source, path = tmp_path / 'source', tmp_path / 'path'
    source.write_bytes(bytes(1000))
    if limit < 1000:
        with pytest.raises(ValueError, match='it is larger than'):
            download(source.as_uri(), path, limit)
    else:
        download(source.as_uri(), path, limit)
        assert path.read_bytes() == bytes(1000)

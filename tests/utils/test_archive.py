"""Archives that are too large, lead out of their folder, or are damaged."""

from __future__ import annotations

import io
import tarfile
import tracemalloc
from pathlib import Path

import pytest

from mldr_kd_mm.utils.archive import extract

LIMIT = 1_000_000
CONTENT = {'set/train': b'1' * 5000, 'set/test': b'2'}


def member(name: str, content: bytes = b'', **fields) -> tuple[tarfile.TarInfo, io.BytesIO]:
    info = tarfile.TarInfo(name)
    info.size = len(content)
    for field, value in fields.items():
        setattr(info, field, value)
    return info, io.BytesIO(content)


def pack(folder: Path, *members) -> Path:
    """Write an archive with ``CONTENT`` after some other members."""
    path = folder / 'archive.tar.gz'
    with tarfile.open(path, 'w:gz') as tar:
        for info, content in (*members, *(member(*item) for item in CONTENT.items())):
            tar.addfile(info, content)
    return path


@pytest.fixture
def folder(tmp_path) -> Path:
    """Return the folder for the members; nothing may be written outside it."""
    path = tmp_path / 'a/b/folder'
    path.mkdir(parents=True)
    return path


def files(root: Path) -> dict[str, bytes]:
    return {
        str(path.relative_to(root)): path.read_bytes() for path in root.rglob('*') if path.is_file()
    }


def test_python_without_the_filter(tmp_path, folder, monkeypatch):
    monkeypatch.delattr(tarfile, 'data_filter')
    with pytest.raises(ValueError, match='needs Python 3.10.12, 3.11.4 or newer'):
        extract(pack(tmp_path), folder, LIMIT)
    assert files(folder) == {}


def test_extracts_the_members(tmp_path, folder):
    extract(pack(tmp_path), folder, LIMIT)
    assert files(folder) == CONTENT


@pytest.mark.parametrize(
    ('name', 'fields'),
    [
        ('../../climbed', {}),
        ('set/../../climbed', {}),
        ('set/train', dict(type=tarfile.SYMTYPE, linkname='/etc/passwd')),
        ('set/train', dict(type=tarfile.SYMTYPE, linkname='../../passwd')),
        ('set/train', dict(type=tarfile.LNKTYPE, linkname='../passwd')),
        ('set/train', dict(type=tarfile.CHRTYPE)),
        ('set/train', dict(type=tarfile.FIFOTYPE)),
    ],
)
def test_refuses_a_hostile_member(tmp_path, folder, name, fields):
    archive = pack(tmp_path, member(name, **fields))
    with pytest.raises(ValueError, match='it is damaged'):
        extract(archive, folder, LIMIT)
    assert list(files(tmp_path)) == ['archive.tar.gz']


@pytest.mark.parametrize('kind', [tarfile.REGTYPE, tarfile.XHDTYPE], ids=['member', 'pax header'])
def test_a_bomb_is_stopped(tmp_path, folder, kind):
    """100 MB of zeros are neither written to disk nor held in memory."""
    archive = pack(tmp_path, member('bomb', bytes(100_000_000), type=kind))
    assert archive.stat().st_size < 200_000
    tracemalloc.start()
    try:
        with pytest.raises(ValueError, match='it is larger than 1 MB'):
            extract(archive, folder, LIMIT)
        assert tracemalloc.get_traced_memory()[1] < 5 * LIMIT
    finally:
        tracemalloc.stop()
    assert sum(map(len, files(folder).values())) <= LIMIT


def test_a_truncated_archive_is_an_error_or_complete(tmp_path, folder):
    archive = pack(tmp_path)
    content = archive.read_bytes()
    for length in range(len(content)):
        archive.write_bytes(content[:length])
        try:
            extract(archive, folder, LIMIT)
        except ValueError as error:
            assert 'it is damaged' in str(error)
        else:
            assert files(folder) == CONTENT


def test_refuses_a_sparse_member(tmp_path, folder):
    """A hole of 1 TB takes no byte of the archive."""
    sparse = {'GNU.sparse.major': '1', 'GNU.sparse.minor': '0', 'GNU.sparse.name': 'set/huge'}
    headers = sparse | {'GNU.sparse.realsize': str(10**12)}
    content = f'1\n{10**12}\n0\n'.encode().ljust(512, b'\0')
    archive = pack(tmp_path, member('set/huge', content, pax_headers=headers))
    with pytest.raises(ValueError, match="it is damaged \\('set/huge' is sparse\\)"):
        extract(archive, folder, LIMIT)
    assert files(folder) == {}


def test_refuses_many_members(tmp_path, folder, monkeypatch):
    """Empty files take 512 bytes each, before compression."""
    monkeypatch.setattr('mldr_kd_mm.utils.archive.MAX_ARCHIVE_MEMBERS', 20)
    archive = pack(tmp_path, *(member(f'set/{i}') for i in range(30)))
    with pytest.raises(ValueError, match='more than 20 members'):
        extract(archive, folder, LIMIT)
    assert len(files(folder)) == 20

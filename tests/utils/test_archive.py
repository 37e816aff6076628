"""Archives that are too large, lead out of their folder, or are damaged."""

from __future__ import annotations

import io
import tarfile
import tracemalloc
import zipfile
from pathlib import Path

import pytest

from mldr_kd_mm.utils import archive as module
from mldr_kd_mm.utils.archive import extract, unpack_zip

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


def zipped(path: Path, contents: dict[str, bytes]) -> Path:
    with zipfile.ZipFile(path, 'w') as file:
        for name, content in contents.items():
            file.writestr(zipfile.ZipInfo(name), content)
    return path


class TestZip:
    def test_extracts_once(self, tmp_path):
        path = zipped(tmp_path / 'set.zip', CONTENT)
        folder = unpack_zip(path)
        assert folder.parent == tmp_path and folder.name.startswith('set_')
        assert files(folder) == CONTENT
        (folder / 'set/test').write_bytes(b'kept')
        assert unpack_zip(path) == folder
        assert files(folder) == CONTENT | {'set/test': b'kept'}
        other = unpack_zip(zipped(path, CONTENT | {'new': b''}))
        assert other != folder and files(other) == CONTENT | {'new': b''}

    def test_names(self, tmp_path):
        names = ['a\\b\\1.png', '/etc/2.png', '../../3.png', '.hidden/4', '__MACOSX/5.png', 'd/']
        folder = unpack_zip(zipped(tmp_path / 'a.zip', dict.fromkeys(names, b'')))
        assert files(tmp_path).keys() == {
            'a.zip',
            f'{folder.name}/a/b/1.png',
            f'{folder.name}/etc/2.png',
        }

    def test_a_link_is_a_plain_file(self, tmp_path):
        link = zipfile.ZipInfo('link')
        link.external_attr = 0o120777 << 16
        with zipfile.ZipFile(tmp_path / 'a.zip', 'w') as file:
            file.writestr(link, '/etc')
        assert not (unpack_zip(tmp_path / 'a.zip') / 'link').is_symlink()

    @pytest.mark.parametrize(
        ('contents', 'message'),
        [
            ({}, 'it holds no files'),
            ({'.x': b''}, 'it holds no files'),
            ({'a': b'', 'a/b': b''}, 'both a file and a folder'),
            ({'a/b': b'', 'a': b''}, 'both a file and a folder'),
        ],
    )
    def test_refuses(self, tmp_path, contents, message):
        path = zipped(tmp_path / 'a.zip', contents)
        with pytest.raises(ValueError, match=message):
            unpack_zip(path)
        assert files(tmp_path).keys() == {'a.zip'}

    def test_a_bomb(self, tmp_path, monkeypatch):
        monkeypatch.setattr(module, 'ZIP_ALLOWANCE', 0)
        path = tmp_path / 'a.zip'
        with zipfile.ZipFile(path, 'w', compression=zipfile.ZIP_DEFLATED) as file:
            file.writestr('zeros', bytes(10**6))
        with pytest.raises(ValueError, match='are more than 100 times its size'):
            unpack_zip(path)

    def test_a_full_disk(self, tmp_path, monkeypatch):
        usage = module.shutil.disk_usage(tmp_path)._replace(free=10)
        monkeypatch.setattr(module.shutil, 'disk_usage', lambda _: usage)
        with pytest.raises(ValueError, match='do not fit on the disk'):
            unpack_zip(zipped(tmp_path / 'a.zip', CONTENT))

    @pytest.mark.parametrize('position', [40, 5000, -30])
    def test_damage(self, tmp_path, position):
        path = zipped(tmp_path / 'a.zip', CONTENT)
        content = bytearray(path.read_bytes())
        content[position] ^= 255
        path.write_bytes(content)
        try:
            folder = unpack_zip(path)
        except ValueError:
            assert files(tmp_path).keys() == {'a.zip'}
        else:  # the damage may be in a name
            assert sorted(files(folder).values()) == sorted(CONTENT.values())

    def test_encryption(self, tmp_path):
        path = zipped(tmp_path / 'a.zip', {'a': b'1'})
        content = bytearray(path.read_bytes())
        content[6] |= 1  # in the member's header
        content[content.index(b'PK\x01\x02') + 8] |= 1  # in the table of contents
        path.write_bytes(content)
        with pytest.raises(ValueError, match='encrypted'):
            unpack_zip(path)

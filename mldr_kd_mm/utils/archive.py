"""Extract archives with a limit on their size."""

from __future__ import annotations

import gzip
import hashlib
import lzma
import os
import shutil
import tarfile
import zlib
from collections.abc import Sequence
from pathlib import Path, PurePosixPath
from tempfile import TemporaryDirectory
from typing import BinaryIO
from zipfile import BadZipFile, ZipFile, ZipInfo

from mldr_kd_mm.utils.limits import MAX_ARCHIVE_MEMBERS, ZIP_ALLOWANCE, ZIP_EXPANSION


class _LimitedReader:
    """File object that raises a ValueError once more than ``limit`` bytes have been read."""

    def __init__(self, stream: BinaryIO, limit: int) -> None:
        self.stream = stream
        self.limit = limit
        self.left = limit

    def read(self, size: int = -1) -> bytes:
        # Read one byte more than allowed, because a claimed size may be wrong.
        content = self.stream.read(min(size, self.left + 1) if size >= 0 else self.left + 1)
        self.left -= len(content)
        if self.left < 0:
            raise ValueError(f'it is larger than {self.limit / 1e6:.0f} MB')
        return content


def extract(archive: Path, folder: Path, limit: int) -> None:
    """Extract a ``.tar.gz`` archive.

    Python's ``data`` filter refuses links and paths that lead out of the folder, and members that
    are neither files nor folders. Check the archive's checksum first: data after its last member is
    not read.

    Args:
        archive: The archive.
        folder: Where its members are written.
        limit: Largest size of the uncompressed archive in bytes.

    Raises:
        ValueError: Python is too old to have the filter; or the archive is damaged, has too many
            members, a sparse one, or one that the filter refuses, or is larger than ``limit``.
            Members before that one have been written.
    """
    if not hasattr(tarfile, 'data_filter'):
        raise ValueError('extracting it safely needs Python 3.10.12, 3.11.4 or newer')
    try:
        with gzip.open(archive) as stream:
            with tarfile.open(fileobj=_LimitedReader(stream, limit), mode='r|') as tar:
                tar.extractall(folder, filter=_MemberFilter())
    except (EOFError, gzip.BadGzipFile, tarfile.TarError, zlib.error) as error:
        raise ValueError(f'it is damaged ({error})') from error


class _MemberFilter:
    """Python's ``data`` filter with a limit on the number of members."""

    def __init__(self) -> None:
        self.count = 0

    def __call__(self, member: tarfile.TarInfo, folder: str) -> tarfile.TarInfo | None:
        self.count += 1
        if self.count > MAX_ARCHIVE_MEMBERS:
            raise tarfile.TarError(f'more than {MAX_ARCHIVE_MEMBERS} members')
        if member.issparse():
            # Its size on disk is what its header says, not what the archive holds.
            raise tarfile.TarError(f'{member.name!r} is sparse')
        return tarfile.data_filter(member, folder)


def unpack_zip(archive: Path) -> Path:
    """Extract a zip file into a folder beside it, unless an earlier call has done so.

    The folder is named after the file and a hash of its table of contents, and is complete or not
    there. Python's ``zipfile`` keeps all paths inside it and writes links as plain files. Hidden
    files and the metadata of macOS are left out.

    Args:
        archive: The zip file.

    Returns:
        The folder.

    Raises:
        ValueError: The file is damaged, encrypted, too large for the disk, or expands to more than
            :data:`~mldr_kd_mm.utils.limits.ZIP_EXPANSION` times its size.
        OSError: The folder cannot be written.
    """
    try:
        with ZipFile(archive) as file:
            members = [member for member in file.infolist() if _is_wanted(member)]
            folder = archive.with_name(f'{archive.stem}_{_hash_of_contents(members)}')
            if folder.is_dir():
                return folder
            _check_size(archive, members)
            with TemporaryDirectory(dir=archive.parent, prefix='.unpacking-') as name:
                for member in members:
                    file.extract(member, Path(name, 'files'))
                _rename(Path(name, 'files'), folder)
    except (BadZipFile, EOFError, lzma.LZMAError, zlib.error) as error:
        raise ValueError(f'it is damaged ({error})') from error
    except (FileExistsError, IsADirectoryError, NotADirectoryError) as error:
        raise ValueError(f'a name in it is both a file and a folder ({error.filename})') from error
    except (NotImplementedError, RuntimeError) as error:  # encryption, an unknown compression
        raise ValueError(str(error)) from error
    return folder


def _rename(source: Path, folder: Path) -> None:
    try:
        os.rename(source, folder)
    except OSError:
        if not folder.is_dir():  # another process may have been faster
            raise


def _is_wanted(member: ZipInfo) -> bool:
    """Return whether a member is a file that is not hidden."""
    # Some programs for Windows write backslashes.
    member.filename = member.filename.replace('\\', '/')
    parts = PurePosixPath(member.filename).parts
    is_hidden = any(part.startswith('.') or part == '__MACOSX' for part in parts)
    return bool(parts) and not member.is_dir() and not is_hidden


def _hash_of_contents(members: Sequence[ZipInfo]) -> str:
    state = hashlib.sha256()
    for member in members:
        facts = f'{member.filename}\0{member.file_size}\0{member.CRC}\n'
        state.update(facts.encode(errors='surrogateescape'))
    return state.hexdigest()[:12]


def _check_size(archive: Path, members: Sequence[ZipInfo]) -> None:
    if not members:
        raise ValueError('it holds no files')
    # zipfile reads no more of a member than the size in its header.
    size = sum(member.file_size for member in members)
    if size > archive.stat().st_size * ZIP_EXPANSION + ZIP_ALLOWANCE:
        raise ValueError(f'its {size / 1e9:.1f} GB are more than {ZIP_EXPANSION} times its size')
    free = shutil.disk_usage(archive.parent).free
    if size > free:
        raise ValueError(
            f'its {size / 1e9:.1f} GB do not fit on the disk, {free / 1e9:.1f} GB free'
        )

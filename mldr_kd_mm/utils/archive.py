"""Extract archives with a limit on their size."""

from __future__ import annotations

import gzip
import tarfile
import zlib
from pathlib import Path
from typing import BinaryIO

from mldr_kd_mm.utils.limits import MAX_ARCHIVE_MEMBERS


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

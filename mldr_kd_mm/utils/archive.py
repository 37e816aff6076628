"""Fetching and unpacking an archive without trusting what it says of its sizes and paths."""

from __future__ import annotations

import gzip
import shutil
import tarfile
import zlib
from collections.abc import Collection
from pathlib import Path
from typing import BinaryIO
from urllib.request import urlopen

TIMEOUT = 60  # seconds without a byte


class _AtMost:
    """Reads a stream and fails where it goes on for more than ``limit`` bytes."""

    def __init__(self, stream: BinaryIO, limit: int) -> None:
        self.stream = stream
        self.limit = limit
        self.left = limit

    def read(self, size: int = -1) -> bytes:
        # One more than there may be tells whether there is more, whatever size the archive claims.
        content = self.stream.read(min(size, self.left + 1) if size >= 0 else self.left + 1)
        self.left -= len(content)
        if self.left < 0:
            raise ValueError(f'it is larger than {self.limit / 1e6:.0f} MB')
        return content


def download(url: str, path: Path, limit: int) -> None:
    """Write what a URL gives to a new file.

    Raises:
        OSError: The URL cannot be read, or the file cannot be written.
        ValueError: It is more than ``limit`` bytes.
    """
    with urlopen(url, timeout=TIMEOUT) as source, path.open('xb') as file:
        shutil.copyfileobj(_AtMost(source, limit), file)


def extract(archive: Path, names: Collection[str], folder: Path, limit: int) -> None:
    """Take files out of a ``.tar.gz``, and nothing else that it holds.

    Args:
        archive: The archive.
        names: The members to take, by their full names.
        folder: Where they are put, each by the last part of its name, as new files.
        limit: What the whole archive may unpack to, in bytes.

    Raises:
        ValueError: The archive is truncated or damaged, unpacks to more than ``limit`` bytes, or
            one of the members is missing or no regular file. Some may have been written then.
    """
    missing = set(names)
    try:
        with gzip.open(archive) as unpacked:
            stream = _AtMost(unpacked, limit)
            with tarfile.open(fileobj=stream, mode='r|') as tar:
                for member in tar:
                    if member.name in missing:
                        _take(tar, member, folder)
                        missing.remove(member.name)
            # The checksum of the archive comes last.
            while stream.read(1 << 20):
                pass
    except (EOFError, gzip.BadGzipFile, tarfile.TarError, zlib.error) as error:
        raise ValueError(f'it is damaged ({error})') from error
    if missing:
        raise ValueError(f'it lacks {min(missing)}')


def _take(tar: tarfile.TarFile, member: tarfile.TarInfo, folder: Path) -> None:
    if not member.isreg():
        raise ValueError(f'its {member.name} is no regular file')
    with tar.extractfile(member) as source, (folder / Path(member.name).name).open('xb') as file:
        shutil.copyfileobj(source, file)

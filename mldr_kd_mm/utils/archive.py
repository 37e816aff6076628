"""Download and extract archives with a limit on their size."""

from __future__ import annotations

import gzip
import shutil
import tarfile
import zlib
from pathlib import Path
from typing import BinaryIO
from urllib.request import urlopen

TIMEOUT = 60  # seconds without a byte


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


def download(url: str, path: Path, limit: int) -> None:
    """Download a URL to a new file.

    Args:
        url: The URL.
        path: The file; it must not exist.
        limit: Largest size in bytes.

    Raises:
        OSError: The URL cannot be read or the file cannot be written.
        ValueError: The URL has more than ``limit`` bytes.
    """
    with urlopen(url, timeout=TIMEOUT) as source, path.open('xb') as file:
        shutil.copyfileobj(_LimitedReader(source, limit), file)


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
        ValueError: Python is too old to have the filter; or the archive is damaged, has a member
            that the filter refuses, or is larger than ``limit``. Members before that one have been
            written.
    """
    if not hasattr(tarfile, 'data_filter'):
        raise ValueError('extracting it safely needs Python 3.10.12, 3.11.4 or newer')
    try:
        with gzip.open(archive) as stream:
            with tarfile.open(fileobj=_LimitedReader(stream, limit), mode='r|') as tar:
                tar.extractall(folder, filter='data')
    except (EOFError, gzip.BadGzipFile, tarfile.TarError, zlib.error) as error:
        raise ValueError(f'it is damaged ({error})') from error

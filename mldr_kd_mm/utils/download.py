"""Download files completely or not at all."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from http.client import HTTPException
from pathlib import Path
from urllib.request import urlopen

from mldr_kd_mm.utils.atomic_files import atomic_write
from mldr_kd_mm.utils.limits import DOWNLOAD_TIMEOUT, MIN_DOWNLOAD_SPEED

_CHUNK = 2**20


def download(
    url: str, path: Path, limit: int, check: Callable[[Path], None] = lambda _: None
) -> None:
    """Download a URL to a file, which appears once it is complete.

    Args:
        url: The URL.
        path: The file. It is replaced if it exists.
        limit: Largest size in bytes.
        check: Function that raises an exception if the content, in a temporary file, is not what it
            must be.

    Raises:
        OSError: The URL cannot be read, the server is too slow, or the file cannot be written.
        ValueError: The download is incomplete, a web page, or larger than ``limit``.
    """
    with atomic_write(path) as file:
        _fetch(url, file.write, limit)
        file.flush()
        check(Path(file.name))


@contextmanager
def quiet_hub() -> Iterator[None]:
    """Silence the warnings of huggingface_hub, which repeats each failed request five times.

    The error that it raises in the end says the same.
    """
    logger = logging.getLogger('huggingface_hub')
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        yield
    finally:
        logger.setLevel(level)


def _fetch(url: str, write: Callable[[bytes], object], limit: int) -> None:
    started, size = time.monotonic(), 0
    with urlopen(url, timeout=DOWNLOAD_TIMEOUT) as source:
        if source.headers.get_content_type() == 'text/html':
            raise ValueError('the server sent a web page instead of the file')
        length = source.headers.get('Content-Length')
        expected = int(length) if length and length.isdecimal() else None
        if expected is not None and expected > limit:
            _raise_too_large(limit)
        # read() would wait until a slow server has sent the whole chunk.
        read = getattr(source, 'read1', source.read)
        while chunk := _read(read):
            size += len(chunk)
            if size > limit:
                _raise_too_large(limit)
            write(chunk)
            seconds = time.monotonic() - started
            if seconds > DOWNLOAD_TIMEOUT and size < MIN_DOWNLOAD_SPEED * seconds:
                raise TimeoutError(f'the server sent {size} bytes in {seconds:.0f} s')
    if expected is not None and size != expected:
        raise ValueError(f'the download is incomplete: {size} of {expected} bytes')


def _read(read: Callable[[int], bytes]) -> bytes:
    try:
        return read(_CHUNK)
    except HTTPException as error:
        raise ValueError(f'the download is incomplete: {error}') from error


def _raise_too_large(limit: int) -> None:
    raise ValueError(f'it is larger than {limit / 1e6:.0f} MB')

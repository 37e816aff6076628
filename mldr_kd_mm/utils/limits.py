"""Limits on files that come from elsewhere.

They are far above what genuine files need. Without them a small file can fill the memory, or keep a
process busy for hours.
"""

from __future__ import annotations

from pathlib import Path

MAX_DOWNLOAD = 100_000_000_000
"""Largest download of a checkpoint, in bytes."""

DOWNLOAD_TIMEOUT = 60
"""Seconds without a byte after which a download fails."""

MIN_DOWNLOAD_SPEED = 1000
"""Slowest average speed of a download, in bytes per second, once the timeout has passed."""

MAX_ARCHIVE_MEMBERS = 10_000
"""Largest number of files and folders in an archive of a data set."""

ZIP_EXPANSION = 100
"""How many times larger than its file the content of a zip file may be."""

ZIP_ALLOWANCE = 1_000_000_000
"""Bytes by which the content of a zip file may be larger in any case."""

MAX_PICKLE_INSTRUCTIONS = 10_000_000
"""Largest number of instructions of a pickle; a checkpoint has about 20 for each tensor."""

MAX_PICKLE_DEPTH = 300
"""Deepest nesting of containers in a pickle."""

MAX_HASHED = 20_000
"""Largest number of tuples and of integers beyond 64 bits that a pickle uses as keys.

Unlike those of strings, their hashes can be chosen such that all keys collide.
"""

EXPANSION = 16
"""How many times larger than its file a content may be that uses parts of itself repeatedly."""

EXPANSION_ALLOWANCE = 1_000_000
"""Objects or bytes by which such a content may be larger in any case."""

TENSOR_ALLOWANCE = 100_000_000
"""Bytes by which the tensors of a checkpoint may be larger in any case."""

MAX_CONFIG_BYTES = 1_000_000
"""Largest config text or JSON file of a run, in bytes."""

MAX_LOG_BYTES = 1_000_000_000
"""Largest log of a run, in bytes."""

MAX_PIXELS = 178_956_970
"""Largest image, in pixels: the size from which Pillow reports a decompression bomb."""


def read_text(path: Path, limit: int = MAX_CONFIG_BYTES) -> str:
    """Read a UTF-8 text file.

    Args:
        path: The file.
        limit: Its largest size in bytes.

    Raises:
        OSError: The file cannot be read.
        ValueError: The file is larger than ``limit``, or is not UTF-8.
    """
    with path.open('rb') as file:
        content = file.read(limit + 1)
    if len(content) > limit:
        raise ValueError(f'larger than {limit / 1e6:.0f} MB')
    return content.decode()

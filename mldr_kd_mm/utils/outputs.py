"""Result files that a repeated command replaces, and their display on the console."""

from __future__ import annotations

import hashlib
import json
import logging
from collections.abc import Callable
from itertools import count
from pathlib import Path

from mmengine.logging import print_log
from rich.console import Console
from rich.markdown import Markdown

from mldr_kd_mm.utils.atomic_files import atomic_write
from mldr_kd_mm.utils.run_identity import hash_file

RECORD = '.written.json'
"""Name of the file in a folder with the SHA-256 of each file that :func:`write_output` wrote."""


def _warn(message: str) -> None:
    print_log(message, 'current', logging.WARNING)


def write_output(path: Path, content: str | bytes, say: Callable[[str], None] = _warn) -> None:
    """Write a file; keep a file of that name that the user has written or changed.

    Such a file gets a number at the end of its name, as in ``kd.py.1``.

    Args:
        path: The file. Its folder is created if necessary.
        content: The new content.
        say: Called with a line about a file that was kept. By default it is logged.

    Raises:
        OSError: The file cannot be written.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    content = content.encode() if isinstance(content, str) else content
    record = path.with_name(RECORD)
    written = _read(record)
    if path.is_file() and hash_file(path) != written.get(path.name):
        names = (path.with_name(f'{path.name}.{number}') for number in count(1))
        kept = path.rename(next(name for name in names if not name.exists()))
        say(f'{path}: was not written by this command, or was changed since; kept as {kept}')
    _write(path, content)
    written[path.name] = hashlib.sha256(content).hexdigest()
    _write(record, json.dumps(written, indent=1).encode() + b'\n')


def show_markdown(text: str, console: Console) -> None:
    """Print Markdown, rendered if the console is a terminal.

    Args:
        text: The Markdown.
        console: The console.
    """
    if console.is_terminal:
        console.print(Markdown(text), soft_wrap=False)
    else:
        console.print(text, markup=False)


def _read(record: Path) -> dict[str, str]:
    """Return the checksums in a record; none if there is no valid record."""
    try:
        written = json.loads(record.read_text())
        return written if isinstance(written, dict) else {}
    except (OSError, ValueError, RecursionError):
        return {}


def _write(path: Path, content: bytes) -> None:
    with atomic_write(path) as file:
        file.write(content)

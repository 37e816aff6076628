"""A cache on disk of a teacher's outputs, one for each view of each sample."""

from __future__ import annotations

import errno
import io
import json
import logging
import math
import os
import shutil
import struct
import zlib
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from mmengine.logging import print_log
from torch import Tensor

from mldr_kd_mm.models.distillers.encodings import (
    Dense,
    TopKLogits,
    encoding_of,
    probability_error,
)
from mldr_kd_mm.structures.view import View, hash_views
from mldr_kd_mm.utils.atomic_files import atomic_write
from mldr_kd_mm.utils.device import to_device
from mldr_kd_mm.utils.dist import run_on_main_process
from mldr_kd_mm.utils.errors import ConfigError, printable
from mldr_kd_mm.utils.file_lock import lock_file
from mldr_kd_mm.utils.limits import read_text
from mldr_kd_mm.utils.nested import iter_differences

FORMAT = 2
DTYPES = dict(fp16=np.float16, fp32=np.float32)
FINGERPRINT = 'fingerprint.json'
LOCK = 'lock'
_NUM_ERRORS = 10_000  # of samples, for the summary of a sparse cache


class TeacherCache:
    """Read the teacher's outputs from disk, or run the teacher and store them.

    ``<name>.bin`` holds one tensor for each sample in each view, (views, samples, ...).
    ``<name>.crc`` holds a checksum for each entry, which is written after it and also covers the
    place of the entry, its name and the fingerprint. An entry that was interrupted or damaged, or
    belongs to another place or cache, does not match its checksum and is computed again.
    ``fingerprint.json`` lists what the outputs depend on.

    The step that stores an entry also returns the stored value, so a run that records and a run
    that reads see the same numbers. A cache that cannot be written, for example on a read-only
    disk, is read, and entries that it lacks are computed in each epoch.

    Args:
        folder: Folder of the files, which all processes must see.
        fingerprint: What the outputs depend on: name -> plain value. It must have ``views``,
            ``samples`` and ``dtype``, ``'fp16'`` or ``'fp32'``. If ``mixing`` is not None, an
            output also depends on the batch in which its image was mixed.
        outputs: Name -> ``dict(tap=..., shape=[...])``, the tap and the shape for one sample, and
            ``top_k`` for logits of which only the largest are stored, see
            :class:`~mldr_kd_mm.models.distillers.encodings.TopKLogits`. Names that are not in the
            folder yet are added to it.

    Raises:
        ConfigError: If the folder holds outputs for other settings, a file is incomplete, the
            disk has too little space, or a new cache cannot be written. In these cases nothing is
            written.
    """

    def __init__(
        self, folder: str | Path, fingerprint: Mapping[str, Any], outputs: Mapping[str, dict]
    ) -> None:
        self.folder = Path(folder)
        # A round trip through JSON gives the same types as reading the file.
        self.fingerprint = json.loads(json.dumps(fingerprint, default=str))
        outputs = json.loads(json.dumps(outputs))
        self.mixed = self.fingerprint.get('mixing') is not None
        self.dtype = np.dtype(DTYPES[fingerprint['dtype']])
        self.entries = (fingerprint['views'], fingerprint['samples'])
        run_on_main_process(lambda: self._prepare(outputs))
        identity = json.dumps(self.fingerprint, sort_keys=True)
        self._arrays = {
            name: _Array(
                self.folder / name,
                self.entries,
                encoding_of(output, self.dtype),
                zlib.crc32(f'{identity} {name}'.encode()),
            )
            for name, output in outputs.items()
        }
        self.errors: dict[str, list[float]] = {name: [] for name in outputs}
        """Name -> probability errors of the first samples that were stored sparsely."""
        self._has_warned = False
        self._is_read_only = not all(array.is_writable for array in self._arrays.values())

    @torch.compiler.disable
    @torch.no_grad()
    def __call__(
        self, views: Sequence[View], device: torch.device, run: Callable[[], Mapping[str, Tensor]]
    ) -> dict[str, Tensor]:
        """Return the teacher's outputs for a batch.

        Args:
            views: Views of the batch.
            device: Device of the outputs.
            run: Function that runs the teacher on the batch. Called if an output is not stored.

        Returns:
            Name -> float32 tensor (B, ...).

        Raises:
            ConfigError: If an output has another shape than before or does not fit the dtype, or a
                file has been truncated.
        """
        places = _places(views, self.entries)
        if self.mixed and len({*places}) < len(places):
            # An image that occurs twice is mixed with two others, but has one place.
            outputs = run()
            found = {name: self.as_stored(name, outputs[name]) for name in self._arrays}
        else:
            found = self.read(views)
            if None in found.values():
                found = self._write(views, run())
        return {name: to_device(values, device).float() for name, values in found.items()}

    def read(self, views: Sequence[View]) -> dict[str, Tensor | None]:
        """Read a batch: name -> (B, ...), or None if one of its entries is not valid."""
        return {
            name: array.read(_places(views, self.entries), self._key(views))
            for name, array in self._arrays.items()
        }

    def as_stored(self, name: str, values: Tensor) -> Tensor:
        """Return an output (B, ...) as it would be read after it was stored."""
        encoding = self._arrays[name].encoding
        packed = encoding.pack(values.detach().float().cpu().numpy())
        return torch.from_numpy(encoding.unpack(packed)).float()

    def sizes(self, name: str) -> tuple[int, int]:
        """Return the bytes of an output's files, and those of a file of all its numbers."""
        encoding = self._arrays[name].encoding
        full = Dense(encoding.shape, encoding.dtype)
        return tuple(sum(_sizes(self.entries, each)) for each in (encoding, full))

    def _write(self, views: Sequence[View], outputs: Mapping[str, Tensor]) -> dict[str, Tensor]:
        found = {}
        if self._is_read_only:
            self._warn_that_it_is_read_only()
        for name, array in self._arrays.items():
            exact, encoding = outputs[name].float().cpu().numpy(), array.encoding
            if exact.shape[1:] != encoding.shape:
                raise ConfigError(
                    f'teacher_cache: {name} has shape {exact.shape[1:]}, before '
                    f'{encoding.shape}; all images must have the same size'
                )
            with np.errstate(over='ignore'):
                packed = encoding.pack(exact)
            values = encoding.unpack(packed)
            if self.dtype == np.float16 and not np.isfinite(values).all():
                raise ConfigError(
                    f"teacher_cache: dtype='fp16': must be 'fp32', as {name} has the value "
                    f'{np.abs(exact).max():.4g}'
                )
            if not self._is_read_only:
                array.write(_places(views, self.entries), packed, self._key(views))
            if isinstance(encoding, TopKLogits) and len(self.errors[name]) < _NUM_ERRORS:
                self.errors[name] += probability_error(exact, values).tolist()
            found[name] = torch.from_numpy(values)
        return found

    def _warn_that_it_is_read_only(self) -> None:
        if not self._has_warned:
            print_log(
                f'teacher_cache: dir={str(self.folder)!r}: cannot be written and lacks entries of '
                'this run; the teacher computes them in each epoch',
                'current',
                logging.WARNING,
            )
        self._has_warned = True

    def _key(self, views: Sequence[View]) -> int:
        """Return a number for the checksums; if images are mixed, it identifies the batch."""
        return hash_views(views) if self.mixed else 0

    def _prepare(self, outputs: dict[str, dict]) -> None:
        """Create the files, or check the existing ones."""
        stored = self._stored_outputs(outputs)
        self._report(stored, outputs)
        if stored.keys() >= outputs.keys():
            return
        try:
            self._make(outputs)
        except OSError as error:
            raise ConfigError(
                f'teacher_cache: dir={str(self.folder)!r}: cannot be written: '
                f'{error.strerror or error}'
            ) from error

    def _make(self, outputs: dict[str, dict]) -> None:
        """Create the files that are not there yet."""
        self.folder.mkdir(parents=True, exist_ok=True)
        with lock_file(self.folder / LOCK):
            # Another run may have created the files in the meantime.
            stored = self._stored_outputs(outputs)
            for name in outputs.keys() - stored.keys():
                encoding = encoding_of(outputs[name], self.dtype)
                _Array.make(self.folder / name, self.entries, encoding)
            # Written last and atomically: without it the other files do not count.
            content = dict(fingerprint=self.fingerprint, outputs=stored | outputs)
            with atomic_write(self.folder / FINGERPRINT) as file:
                file.write(json.dumps(content, indent=1).encode() + b'\n')

    def _stored_outputs(self, outputs: dict[str, dict]) -> dict[str, dict]:
        path = self.folder / FINGERPRINT
        if not path.is_file():
            self._check_free()
            return {}
        known, stored = _read_fingerprint(path)
        wanted = dict(self.fingerprint, outputs={n: o for n, o in outputs.items() if n in stored})
        there = dict(known, outputs={n: o for n, o in stored.items() if n in outputs})
        differences = [
            f'{printable(field)} was {_short(old)}, is {_short(new)}'
            for field, old, new in iter_differences(there, wanted)
        ]
        if differences:
            more = f' and {len(differences) - 4} more' if len(differences) > 4 else ''
            raise ConfigError(
                f'teacher_cache: dir={str(self.folder)!r}: was recorded with other settings: '
                f'{"; ".join(differences[:4])}{more}; set another dir, or delete this one'
            )
        for name, output in stored.items():
            _Array.check(self.folder / name, self.entries, encoding_of(output, self.dtype))
        return stored

    def _check_free(self) -> None:
        """Refuse a folder that is not a cache, whose files would be overwritten."""
        # The lock is the first file of a cache, also of one that was interrupted.
        if self.folder.is_dir() and not (self.folder / LOCK).is_file():
            other = next(self.folder.iterdir(), None)
            if other is not None:
                raise ConfigError(
                    f'teacher_cache: dir={str(self.folder)!r}: must be a new or empty folder, or a '
                    f'teacher cache; it holds {other.name!r}'
                )

    def _report(self, stored: dict[str, dict], outputs: dict[str, dict]) -> None:
        """Log the sizes; raise if the disk has too little space for new outputs."""
        needed = 0
        for name, output in outputs.items():
            size = sum(_sizes(self.entries, encoding_of(output, self.dtype)))
            needed += 0 if name in stored else size
            print_log(
                f'teacher_cache: {"read" if name in stored else "record"} {name} '
                f'{tuple(output["shape"])} in {self.folder}: {self.entries[0]} views of '
                f'{self.entries[1]} samples, {format_bytes(size)}',
                'current',
            )
        folders = (self.folder, *self.folder.absolute().parents)
        free = shutil.disk_usage(next(path for path in folders if path.is_dir())).free
        if needed > free:
            raise ConfigError(
                f'teacher_cache: dir={str(self.folder)!r}: needs {format_bytes(needed)}, the disk '
                f"has {format_bytes(free)} left; use fewer views, dtype='fp16' or another disk"
            )

    def __deepcopy__(self, memo: dict) -> TeacherCache:
        return self

    def __reduce__(self) -> tuple:
        """Pickle None instead: a Distiller that is loaded has no cache."""
        return type(None), ()


class _Array:
    """One tensor for each sample in each view, with a checksum."""

    def __init__(
        self,
        path: Path,
        entries: tuple[int, int],
        encoding: Dense | TopKLogits,
        identity: int,
    ) -> None:
        self.encoding = encoding
        self.identity = identity
        self._values, self._marks = map(_open, _files(path))
        self.is_writable = self._values.writable() and self._marks.writable()

    @staticmethod
    def make(path: Path, entries: tuple[int, int], encoding: Dense | TopKLogits) -> None:
        """Create files in which no entry is valid."""
        for file_path, size in zip(_files(path), _sizes(entries, encoding), strict=True):
            file_path.unlink(missing_ok=True)  # The target of a link stays.
            with open(file_path, 'xb') as file:
                # Reserve the space, so that the disk cannot fill up while entries are recorded.
                os.posix_fallocate(file.fileno(), 0, size)

    @staticmethod
    def check(path: Path, entries: tuple[int, int], encoding: Dense | TopKLogits) -> None:
        """Refuse links and incomplete files."""
        for file, size in zip(_files(path), _sizes(entries, encoding), strict=True):
            if file.is_symlink():
                raise ConfigError(
                    f'teacher_cache: {file} is a link, which would be written through; delete '
                    f'{path.parent}'
                )
            found = file.stat().st_size if file.exists() else 0
            if found != size:
                raise ConfigError(
                    f'teacher_cache: {file} has {found} bytes, must have {size}; delete '
                    f'{path.parent}'
                )

    def read(self, places: Sequence[int], key: int) -> Tensor | None:
        """Read entries (B, ...); None if one is not valid."""
        marks = np.empty(len(places), np.uint32)
        _read(self._marks, places, marks)
        if not marks.all():
            return None
        packed = np.empty((len(places), self.encoding.num_bytes), np.uint8)
        _read(self._values, places, packed)
        valid = np.array_equal(marks, self._checksums(places, packed, key))
        return torch.from_numpy(self.encoding.unpack(packed)) if valid else None

    def write(self, places: Sequence[int], packed: np.ndarray, key: int) -> None:
        """Write packed entries (B, N), and then their checksums."""
        _write(self._values, places, packed)
        _write(self._marks, places, self._checksums(places, packed, key))

    def _checksums(self, places: Sequence[int], packed: np.ndarray, key: int) -> np.ndarray:
        """Return the checksums of entries (B,). They are never 0, which marks an empty entry."""
        starts = (zlib.crc32(struct.pack('<QI', place, key), self.identity) for place in places)
        marks = [zlib.crc32(v.tobytes(), s) or 1 for v, s in zip(packed, starts, strict=True)]
        return np.array(marks, np.uint32)


def _open(path: Path) -> io.FileIO:
    """Open a file for reading and writing, or for reading only if it cannot be written."""
    try:
        return open(path, 'r+b', buffering=0)
    except OSError as error:
        if error.errno not in (errno.EROFS, errno.EACCES, errno.EPERM):
            raise
        return open(path, 'rb', buffering=0)


# The files are not mapped into memory: if one was truncated, reading it would end the process with
# SIGBUS.
def _read(file: io.FileIO, places: Sequence[int], values: np.ndarray) -> None:
    """Read the entries at these places of a file into an array (B, ...)."""
    for place, value in zip(places, values.reshape(len(places), -1), strict=True):
        if os.preadv(file.fileno(), [value], place * value.nbytes) != value.nbytes:
            raise ConfigError(
                f'teacher_cache: {file.name} has been truncated; delete {Path(file.name).parent}'
            )


def _write(file: io.FileIO, places: Sequence[int], values: np.ndarray) -> None:
    """Write an array (B, ...) to these places of a file."""
    for place, value in zip(places, values.reshape(len(places), -1), strict=True):
        written = os.pwrite(file.fileno(), value, place * value.nbytes)
        if written != value.nbytes:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), file.name)


def _read_fingerprint(path: Path) -> tuple[dict[str, Any], dict[str, dict]]:
    """Read what the stored outputs depend on, and name -> ``dict(shape=[...], ...)`` of each."""
    try:
        content = json.loads(read_text(path))
        known, stored = content['fingerprint'], content['outputs']
        sizes = [size for output in stored.values() for size in output['shape']]
        sizes += [output['top_k'] for output in stored.values() if 'top_k' in output]
        names_are_plain = all(Path(name).name == name for name in stored)
        sizes_are_sizes = all(type(size) is int and size > 0 for size in sizes)
        if not (isinstance(known, dict) and names_are_plain and sizes_are_sizes):
            raise ValueError('unexpected content')
    except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise ConfigError(
            f'teacher_cache: {path} cannot be read ({error}); delete {path.parent}'
        ) from error
    return known, stored


def _files(path: Path) -> tuple[Path, Path]:
    return path.with_name(f'{path.name}.bin'), path.with_name(f'{path.name}.crc')


def _sizes(entries: tuple[int, int], encoding: Dense | TopKLogits) -> tuple[int, int]:
    count = math.prod(entries)
    return count * encoding.num_bytes, count * np.dtype(np.uint32).itemsize


def _places(views: Sequence[View], entries: tuple[int, int]) -> list[int]:
    """Return the number of each view's entry in a file."""
    return [view.epoch * entries[1] + view.index for view in views]


def _short(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 60 else f'{text[:57]}...'


def format_bytes(number: float) -> str:
    """Return a number of bytes with its unit."""
    for unit in ('B', 'kB', 'MB', 'GB'):
        if number < 1000:
            return f'{number:.4g} {unit}'
        number /= 1000
    return f'{number:.4g} TB'

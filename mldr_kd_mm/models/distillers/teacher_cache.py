"""A cache on disk of a teacher's outputs, one for each view of each sample."""

from __future__ import annotations

import json
import math
import os
import shutil
import zlib
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from mmengine.logging import print_log
from torch import Tensor

from mldr_kd_mm.structures.view import View, hash_views
from mldr_kd_mm.utils.atomic_files import atomic_write
from mldr_kd_mm.utils.dist import run_on_main_process
from mldr_kd_mm.utils.errors import ConfigError, printable
from mldr_kd_mm.utils.file_lock import lock_file
from mldr_kd_mm.utils.nested import iter_differences

FORMAT = 1
DTYPES = dict(fp16=np.float16, fp32=np.float32)
FINGERPRINT = 'fingerprint.json'
LOCK = 'lock'


class TeacherCache:
    """Read the teacher's outputs from disk, or run the teacher and store them.

    ``<name>.bin`` holds one tensor for each sample in each view, (views, samples, ...), and is
    mapped into the memory of all processes. ``<name>.crc`` holds a checksum for each entry, which
    is written after it. An entry that was interrupted or damaged does not match its checksum and is
    computed again. ``fingerprint.json`` lists what the outputs depend on.

    The step that stores an entry also returns the stored value, so a run that records and a run
    that reads see the same numbers.

    Args:
        folder: Folder of the files, which all processes must see.
        fingerprint: What the outputs depend on: name -> plain value. It must have ``views``,
            ``samples`` and ``dtype``, ``'fp16'`` or ``'fp32'``. If ``mixing`` is not None, an
            output also depends on the batch in which its image was mixed.
        outputs: Name -> ``dict(tap=..., shape=[...])``, the tap and the shape for one sample. Names
            that are not in the folder yet are added to it.

    Raises:
        ConfigError: If the folder holds outputs for other settings, a file is incomplete, or the
            disk has too little space. In these cases nothing is written.
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
        self._arrays = {
            name: _Array(self.folder / name, self.entries, output['shape'], self.dtype)
            for name, output in outputs.items()
        }

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
            ConfigError: If an output has another shape than before, or does not fit the dtype.
        """
        found = self.read(views)
        if None in found.values():
            found = self._write(views, run())
        return {name: _to_device(values, device) for name, values in found.items()}

    def read(self, views: Sequence[View]) -> dict[str, Tensor | None]:
        """Read a batch: name -> (B, ...), or None if one of its entries is not valid."""
        return {
            name: array.read(_place(views), self._key(views))
            for name, array in self._arrays.items()
        }

    def _write(self, views: Sequence[View], outputs: Mapping[str, Tensor]) -> dict[str, Tensor]:
        found = {}
        for name, array in self._arrays.items():
            exact = outputs[name].float().cpu().numpy()
            with np.errstate(over='ignore'):
                values = exact.astype(self.dtype)
            if values.shape[1:] != array.values.shape[2:]:
                raise ConfigError(
                    f'teacher_cache: {name} has shape {values.shape[1:]}, before '
                    f'{array.values.shape[2:]}; all images must have the same size'
                )
            if self.dtype == np.float16 and not np.isfinite(values).all():
                raise ConfigError(
                    f"teacher_cache: dtype='fp16': must be 'fp32', as {name} has the value "
                    f'{np.abs(exact).max():.4g}'
                )
            array.write(_place(views), values, self._key(views))
            found[name] = torch.from_numpy(values)
        return found

    def _key(self, views: Sequence[View]) -> int:
        """Return the checksums' start value; if images are mixed, it identifies the batch."""
        return hash_views(views) if self.mixed else 0

    def _prepare(self, outputs: dict[str, dict]) -> None:
        """Create the files, or check the existing ones."""
        stored = self._stored_outputs(outputs)
        self._report(stored, outputs)
        if stored.keys() >= outputs.keys():
            return
        self.folder.mkdir(parents=True, exist_ok=True)
        with lock_file(self.folder / LOCK):
            # Another run may have created the files in the meantime.
            stored = self._stored_outputs(outputs)
            for name in outputs.keys() - stored.keys():
                shape = outputs[name]['shape']
                _Array.make(self.folder / name, self.entries, shape, self.dtype)
            # Written last and atomically: without it the other files do not count.
            content = dict(fingerprint=self.fingerprint, outputs=stored | outputs)
            with atomic_write(self.folder / FINGERPRINT) as file:
                file.write(json.dumps(content, indent=1).encode())

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
            _Array.check(self.folder / name, self.entries, output['shape'], self.dtype)
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
            size = sum(_sizes(self.entries, output['shape'], self.dtype))
            needed += 0 if name in stored else size
            print_log(
                f'teacher_cache: {"read" if name in stored else "record"} {name} '
                f'{tuple(output["shape"])} in {self.folder}: {self.entries[0]} views of '
                f'{self.entries[1]} samples, {_bytes(size)}',
                'current',
            )
        folders = (self.folder, *self.folder.absolute().parents)
        free = shutil.disk_usage(next(path for path in folders if path.is_dir())).free
        if needed > free:
            raise ConfigError(
                f'teacher_cache: dir={str(self.folder)!r}: needs {_bytes(needed)}, the disk has '
                f"{_bytes(free)} left; use fewer views, dtype='fp16' or another disk"
            )

    def __deepcopy__(self, memo: dict) -> TeacherCache:
        return self


class _Array:
    """One tensor for each sample in each view, with a checksum."""

    def __init__(
        self, path: Path, entries: tuple[int, int], shape: Sequence[int], dtype: np.dtype
    ) -> None:
        values, marks = _files(path)
        self.values = np.memmap(values, dtype, 'r+', shape=(*entries, *shape))
        self.marks = np.memmap(marks, np.uint32, 'r+', shape=entries)

    @staticmethod
    def make(path: Path, entries: tuple[int, int], shape: Sequence[int], dtype: np.dtype) -> None:
        """Create files in which no entry is valid."""
        for file_path, size in zip(_files(path), _sizes(entries, shape, dtype), strict=True):
            file_path.unlink(missing_ok=True)  # The target of a link stays.
            with open(file_path, 'xb') as file:
                # Reserve the space: a full disk would later kill the process without a message.
                os.posix_fallocate(file.fileno(), 0, size)

    @staticmethod
    def check(path: Path, entries: tuple[int, int], shape: Sequence[int], dtype: np.dtype) -> None:
        """Refuse links and incomplete files."""
        for file, size in zip(_files(path), _sizes(entries, shape, dtype), strict=True):
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

    def read(self, place: tuple[np.ndarray, np.ndarray], key: int) -> Tensor | None:
        """Read entries (B, ...); None if one is not valid."""
        marks = self.marks[place]
        if not marks.all():
            return None
        values = self.values[place]
        valid = all(mark == _mark(value, key) for mark, value in zip(marks, values, strict=True))
        return torch.from_numpy(values) if valid else None

    def write(self, place: tuple[np.ndarray, np.ndarray], values: np.ndarray, key: int) -> None:
        """Write entries, and then their checksums."""
        self.values[place] = values
        self.marks[place] = [_mark(value, key) for value in values]


def _read_fingerprint(path: Path) -> tuple[dict[str, Any], dict[str, dict]]:
    """Read what the stored outputs depend on, and name -> ``dict(shape=[...], ...)`` of each."""
    try:
        content = json.loads(path.read_text())
        known, stored = content['fingerprint'], content['outputs']
        sizes = [size for output in stored.values() for size in output['shape']]
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


def _sizes(entries: tuple[int, int], shape: Sequence[int], dtype: np.dtype) -> tuple[int, int]:
    count = math.prod(entries)
    return count * math.prod(shape) * dtype.itemsize, count * np.dtype(np.uint32).itemsize


def _mark(value: np.ndarray, key: int) -> int:
    """Compute the checksum of an entry. It is never 0, which marks an empty entry."""
    return zlib.crc32(value.tobytes(), key) or 1


def _place(views: Sequence[View]) -> tuple[np.ndarray, np.ndarray]:
    return np.array([view.epoch for view in views]), np.array([view.index for view in views])


def _to_device(values: Tensor, device: torch.device) -> Tensor:
    if device.type == 'cuda':
        values = values.pin_memory()
    return values.to(device, non_blocking=True).float()


def _short(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 60 else f'{text[:57]}...'


def _bytes(number: int) -> str:
    for unit in ('B', 'kB', 'MB', 'GB'):
        if number < 1000:
            return f'{number:.4g} {unit}'
        number /= 1000
    return f'{number:.4g} TB'

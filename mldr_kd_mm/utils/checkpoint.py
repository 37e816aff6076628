"""Reading checkpoints: a file, URL or hub name in, plain content out, and no code of it run."""

from __future__ import annotations

import hashlib
import re
from pathlib import Path
from pickle import UnpicklingError
from typing import Any, NamedTuple, NoReturn
from urllib.parse import urlparse
from zipfile import ZipFile

import torch
from mmengine.logging import HistoryBuffer
from mmengine.runner import CheckpointLoader
from safetensors.torch import load_file
from torch import Tensor

from mldr_kd_mm.utils.errors import ConfigError, printable
from mldr_kd_mm.utils.safe_pickle import STAND_INS, PickledArray, PickledDType


class _Discarded:
    """Stands for what trainers write into a checkpoint and neither weights nor a resumed run need.

    These are the command lines of timm's and DeiT's trainers (a ``Namespace``, with paths in it)
    and the functions that mmengine's objects refer to, which a new object of the same config has.
    Their own classes would not be safe to allow: ``getattr`` leads anywhere, and a ``Namespace``
    takes any attribute.
    """

    def __init__(self, *_: Any) -> None:
        pass

    def __setstate__(self, _: Any) -> None:
        pass


class _History:
    """Stands in for mmengine's ``HistoryBuffer``, a series of logged numbers."""

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.state = state

    def rebuild(self) -> HistoryBuffer:
        logs, counts = (self.state[name].value for name in ('_log_history', '_count_history'))
        max_length = self.state['max_length']
        if logs is None or counts is None or not logs.ndim == counts.ndim == 1:
            raise ValueError('a HistoryBuffer must hold two series of numbers')
        if type(max_length) is not int or not len(logs) == len(counts) <= max_length:
            raise ValueError('a HistoryBuffer must hold as many values as counts, up to max_length')
        return HistoryBuffer(logs, counts, max_length)


_STAND_INS = [
    (_History, 'mmengine.logging.history_buffer.HistoryBuffer'),
    *((stand_in, '.'.join(name)) for name, stand_in in STAND_INS.items()),
    *(
        (_Discarded, name)
        for name in (
            'argparse.Namespace',
            'builtins.getattr',
            'mmengine.optim.scheduler.param_scheduler.OneCycleParamScheduler',
            *(
                f'{module}.{kind}'
                for module in ('pathlib', 'pathlib._local')  # the latter of Python 3.13
                for kind in (
                    'Path',
                    'PosixPath',
                    'WindowsPath',
                    'PurePosixPath',
                    'PureWindowsPath',
                )
            ),
        )
    ),
]
MSDOS_DIRECTORY = 0x10  # a record's attribute

# What load_checkpoint does not take: mmengine's names of files elsewhere, which it would fetch and
# read with code running.
_OTHER_SCHEMES = [
    'modelzoo://',
    'torchvision://',
    'open-mmlab://',
    'openmmlab://',
    'mmcls://',
    'pavi://',
    r'(\S+\:)?s3://',
    r'(\S+\:)?petrel://',
]

# Where trainers put the weights. Of timm's two sets the average is the one that it evaluates and
# publishes; DeiT's and Vim's trainers choose their best epoch by, and read back, ``model``. What
# mmengine's EMAHook leaves in ``ema_state_dict`` are the weights that were *not* evaluated.
_PLACES = ('state_dict_ema', 'state_dict', 'model', 'model_state_dict', 'module', 'model_ema')
# What DistributedDataParallel and torch.compile put before all names.
_WRAPPERS = ('module.', '_orig_mod.')

_HUB = re.compile('hf[-_]hub:')
_HUB_FILES = ('model.safetensors', 'pytorch_model.bin')


class Weights(NamedTuple):
    """The weights of a checkpoint.

    Attributes:
        tensors: Name -> tensor, without the prefixes of wrappers.
        notes: What the user may want to know about where they were found.
    """

    tensors: dict[str, Tensor]
    notes: tuple[str, ...] = ()


def load_checkpoint(
    path: str, field: str = 'checkpoint', map_location: Any = 'cpu'
) -> dict[str, Any]:
    """Read a checkpoint whole, as its trainer needs it to go on.

    Args:
        path: Path or URL of a ``.safetensors`` file, or of a file of ``torch.save`` whatever its
            name ends in, or ``hf-hub:OWNER/NAME``, ``hf-hub:OWNER/NAME@REVISION``.
        field: Name of the config's field that holds the path, for the errors.
        map_location: Where the tensors are put, as ``torch.load`` takes it; those of a
            ``.safetensors`` file stay on the CPU.

    Returns:
        The content of the file. It has tensors, plain containers, numpy's arrays and scalars of
        numbers and mmengine's ``HistoryBuffer``; a few other harmless kinds of objects are left
        out of a dict, and None in a list.

    Raises:
        FileNotFoundError: If there is no such file.
        ConfigError: If the file cannot be read, is truncated, differs from what was written (files
            of before torch 1.6 and ``.safetensors`` have no checksums), is no dict, or asks for
            any other object. None of its code has run then.
    """
    try:
        file = _local_file(path)
        if not file.is_file():
            raise FileNotFoundError(f'{field}={path!r}: there is no such file')
        if file.suffix == '.safetensors':
            content = load_file(file)
        else:
            _check_records(file)
            with torch.serialization.safe_globals(_STAND_INS):
                content = torch.load(file, map_location=map_location, weights_only=True)
            content = _rebuild(content, set())
    except FileNotFoundError:
        raise
    except Exception as error:
        # torch raises whatever its unpickler or the network meets.
        raise ConfigError(f'{field}={path!r}: {_reason(error)}') from error
    if not isinstance(content, dict):
        raise ConfigError(
            f'{field}={path!r}: must hold a dict, it holds a {type(content).__name__}'
        )
    return content


def has_training_state(content: dict[str, Any]) -> bool:
    """Whether a file holds the state of a run, and not weights alone as of an exported student."""
    meta = content.get('meta')
    return isinstance(meta, dict) and 'iter' in meta


def use_safe_loading() -> None:
    """Let mmengine read checkpoints with :func:`load_checkpoint`, until this process ends.

    That holds for ``load_from``, ``resume`` and ``init_cfg=dict(type='Pretrained', ...)``, and for
    all Runners and models of the process, which is why importing the package does not do it.
    mmengine's own loader runs the code of a file that it cannot read otherwise (OneDL), or cannot
    read its own checkpoints with torch 2.6 and later (0.10.7).
    """

    # mmengine logs what follows load_from_ in these names.
    def load_from_file(filename: str, map_location: Any = None) -> dict[str, Any]:
        return load_checkpoint(filename, map_location=map_location)

    def load_from_elsewhere(filename: str, map_location: Any = None) -> NoReturn:
        raise ConfigError(f'checkpoint={filename!r}: must be a path, an http(s) URL or hf-hub:NAME')

    CheckpointLoader.register_scheme(['', 'http://', 'https://'], load_from_file, force=True)
    CheckpointLoader.register_scheme(_OTHER_SCHEMES, load_from_elsewhere, force=True)


def _check_records(file: Path) -> None:
    """Raise if an archive of ``torch.save`` is not as it was written; torch checks little."""
    with file.open('rb') as stream:
        if stream.read(4) != b'PK\x03\x04':
            return  # of before torch 1.6: without checksums
    with ZipFile(file) as archive:
        records = archive.infolist()
        as_torch_writes_it = (
            # torch takes names that differ by case for one.
            len({record.filename.lower() for record in records}) == len(records)
            # A compressed record may be a thousand times as large as the file, and for a directory
            # torch returns memory as it finds it.
            and all(record.compress_size == record.file_size for record in records)
            and not any(record.external_attr & MSDOS_DIRECTORY for record in records)
            and sum(record.file_size for record in records) <= file.stat().st_size
        )
        if not as_torch_writes_it:
            raise ValueError('damaged, its records are not as torch.save writes them')
        # They are all 0 if torch was told to save without them.
        has_checksums = any(record.CRC for record in records)
        damaged = archive.testzip() if has_checksums else None
    if damaged:
        raise ValueError(f'damaged, its record {damaged!r} does not fit its checksum')


def _rebuild(value: Any, seen: set[int]) -> Any:
    """Replace the stand-ins by what they stand for, in place where that can be."""
    if isinstance(value, _History):
        return value.rebuild()
    if isinstance(value, PickledArray):
        return value.value.copy()
    if type(value) is tuple:
        return tuple(None if _is_left_out(item) else _rebuild(item, seen) for item in value)
    if not isinstance(value, (dict, list)) or id(value) in seen:
        return value
    seen.add(id(value))
    if isinstance(value, dict):
        for key, item in list(value.items()):
            if _is_left_out(item):
                del value[key]
            else:
                value[key] = _rebuild(item, seen)
    else:
        value[:] = [None if _is_left_out(item) else _rebuild(item, seen) for item in value]
    return value


def _is_left_out(value: Any) -> bool:
    if isinstance(value, PickledArray):
        return value.value is None
    return isinstance(value, (_Discarded, PickledDType))


def _local_file(path: str) -> Path:
    if _HUB.match(path):
        return _download_from_hub(_HUB.sub('', path, count=1))
    return _download(path) if '://' in path else Path(path).expanduser()


def _download(url: str) -> Path:
    """Fetch a file once, to where torch keeps checkpoints."""
    # Many a run ends with an epoch_300.pth: the whole address tells them apart.
    address = hashlib.sha256(url.encode()).hexdigest()[:12]
    file = Path(torch.hub.get_dir(), 'checkpoints', f'{address}-{Path(urlparse(url).path).name}')
    if not file.exists():
        file.parent.mkdir(parents=True, exist_ok=True)
        torch.hub.download_url_to_file(url, str(file))
    return file


def _download_from_hub(name: str) -> Path:
    """Fetch a repository's weights once, to where huggingface_hub keeps them."""
    from huggingface_hub import hf_hub_download
    from huggingface_hub.errors import EntryNotFoundError, LocalEntryNotFoundError

    repository, _, revision = name.partition('@')
    unreachable = False
    for file in _HUB_FILES:
        try:
            # Without a network each question takes half a minute: one is enough.
            return Path(
                hf_hub_download(
                    repository, file, revision=revision or None, local_files_only=unreachable
                )
            )
        except LocalEntryNotFoundError:
            unreachable = True
        except EntryNotFoundError:
            pass
    files = ' nor '.join(_HUB_FILES)
    if unreachable:
        raise OSError(f'the hub cannot be reached, and neither {files} is in its local cache')
    raise OSError(f'the hub has neither {files} there')


def _reason(error: Exception) -> str:
    text = str(error)
    if isinstance(error, UnpicklingError):
        # torch would advise how to run it nevertheless.
        text = text.rpartition('WeightsUnpickler error: ')[2]
        if refused := re.search(r'GLOBAL (\S+)', text):
            name = printable(refused[1])
            return f'refused: it asks for {name}, and weights are tensors and plain containers'
    first_line = (text.strip() or type(error).__name__).splitlines()[0]
    return f'cannot be read as weights: {printable(first_line)}'


def read_weights(path: str, field: str = 'checkpoint') -> Weights:
    """Find the weights of a checkpoint.

    They are the file's content itself, or the first state dict under ``state_dict_ema``,
    ``state_dict``, ``model``, ``model_state_dict``, ``module`` and ``model_ema``. Prefixes that all
    names share through DistributedDataParallel or torch.compile are taken off. Of a checkpoint of a
    distillation run, these are the student's.

    Args:
        path: What :func:`load_checkpoint` takes.
        field: Name of the config's field that holds the path, for the errors.

    Returns:
        The weights, and where they were found if not in the usual place.

    Raises:
        FileNotFoundError: If there is no such file.
        ConfigError: If the file cannot be read or holds no weights.
    """
    checkpoint = load_checkpoint(path, field)
    places = {'': checkpoint} | {place: checkpoint.get(place) for place in _PLACES}
    found = [place for place, content in places.items() if _is_state_dict(content)]
    if not found:
        there = ', '.join(map(printable, list(checkpoint)[:20])) or 'nothing'
        raise ConfigError(
            f'{field}={path!r}: has no weights under {", ".join(map(repr, _PLACES))}; '
            f'it has: {there}'
        )
    weights = _unwrap(places[found[0]])
    notes = [] if found[0] in ('', 'state_dict') else [f'from {found[0]!r}']
    student = _student(weights)
    if student:
        notes.append('of the student of a distillation run')
    return Weights(student or weights, tuple(notes))


def _is_state_dict(content: Any) -> bool:
    return (
        isinstance(content, dict)
        and bool(content)
        and all(isinstance(name, str) for name in content)
        and all(isinstance(value, Tensor) for value in content.values())
    )


def _unwrap(weights: dict[str, Tensor]) -> dict[str, Tensor]:
    def wrapper() -> str:
        shared = (w for w in _WRAPPERS if all(name.startswith(w) for name in weights))
        return next(shared, '')

    while prefix := wrapper():  # they nest, in any order
        weights = {name.removeprefix(prefix): value for name, value in weights.items()}
    return weights


def student_state_dict(checkpoint: dict[str, Any]) -> dict[str, Tensor]:
    """Take the plain student out of a checkpoint.

    Args:
        checkpoint: The content of a checkpoint of a distillation run.

    Returns:
        Name -> tensor, named as mmpretrain has them, or timm, for a TimmClassifier.

    Raises:
        ConfigError: If the weights are not a Distiller's.
    """
    weights = checkpoint.get('state_dict')
    student = _student(weights if _is_state_dict(weights) else {})
    if not student:
        raise ConfigError('checkpoint: is not of a distillation run: no weight is named student.*')
    return student


def _student(weights: dict[str, Tensor]) -> dict[str, Tensor]:
    # A TimmClassifier holds timm's model as its only child with weights.
    for prefix in ('student.model.', 'student.'):
        student = {
            key.removeprefix(prefix): value
            for key, value in weights.items()
            if key.startswith(prefix)
        }
        if student:
            return student
    return {}

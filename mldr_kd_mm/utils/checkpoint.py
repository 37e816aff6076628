"""Load checkpoints from files, URLs and the Hugging Face hub without executing their code."""

from __future__ import annotations

import hashlib
import io
import json
import re
import struct
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from pickle import UnpicklingError
from typing import Any, BinaryIO, NamedTuple, NoReturn
from urllib.parse import urlparse
from zipfile import ZIP_STORED, ZipFile

import torch
from mmengine.logging import HistoryBuffer
from mmengine.runner import CheckpointLoader
from safetensors import safe_open
from safetensors.torch import load_file
from torch import Tensor

from mldr_kd_mm.utils.download import download, quiet_hub
from mldr_kd_mm.utils.errors import ConfigError, MissingFileError, printable
from mldr_kd_mm.utils.file_kinds import (
    describe_other_archive,
    describe_other_file,
    is_safetensors,
)
from mldr_kd_mm.utils.limits import (
    EXPANSION,
    MAX_CONFIG_BYTES,
    MAX_DOWNLOAD,
    TENSOR_ALLOWANCE,
    read_text,
)
from mldr_kd_mm.utils.logging import tell
from mldr_kd_mm.utils.pickle_scan import check_pickle
from mldr_kd_mm.utils.safe_pickle import STAND_INS, PickledArray, PickledDType


class _Discarded:
    """Stand-in for objects that are needed neither for weights nor to resume a run.

    timm's and DeiT's trainers write their command line (a ``Namespace`` with paths in it), and
    mmengine's objects refer to functions, which a new object of the same config has again. The
    real classes would not be safe to allow: ``getattr`` reaches everything, and a ``Namespace``
    takes any attribute.
    """

    def __init__(self, *_: Any) -> None:
        pass

    def __setstate__(self, _: Any) -> None:
        pass


class _History:
    """Stand-in for mmengine's ``HistoryBuffer``, a series of logged numbers."""

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
                for module in ('pathlib', 'pathlib._local')  # the latter since Python 3.13
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
_MSDOS_DIRECTORY = 0x10  # external attribute of a zip record
# Bytes of the parts of a zip file: before each record, without its name, and at the end.
_ZIP_HEADER, _ZIP_END, _ZIP64_LOCATOR, _ZIP64_END = 30, 22, 20, 56
_LEGACY_PICKLES = 5  # torch before 1.6 wrote this many before the tensors

# torch's functions that rebuild dense tensors. Its other ones take the size of their result from
# the file, or hand it to C++ code.
_REBUILD = re.compile(
    r'torch\._(utils|tensor)\._rebuild_'
    r'(tensor(_v2|_v3)?|parameter(_with_state)?|qtensor|from_type_v2)'
)
_NEVER = re.compile(r'.*\.(_rebuild_\w+|bytearray)|torch\.(\w+\.)*\w+Tensor')
_NEVER_CALLED = 'torch.Tensor()'

# mmengine's other address schemes: it would download such files and execute their code.
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

# The keys under which trainers save weights, in order of preference. timm evaluates and publishes
# its averaged weights (``state_dict_ema``); DeiT and Vim choose their best epoch by ``model``.
# mmengine's ``ema_state_dict`` is not among them: it holds the weights that were *not* evaluated.
_WEIGHT_KEYS = ('state_dict_ema', 'state_dict', 'model', 'model_state_dict', 'module', 'model_ema')
# The prefixes that DistributedDataParallel and torch.compile add to all names.
_WRAPPERS = ('module.', '_orig_mod.')
_AVERAGED = 'n_averaged'

_HUB = re.compile('hf[-_]hub:')
_HUB_FILES = ('model.safetensors', 'pytorch_model.bin')
_FOLDER_FILES = (*_HUB_FILES, 'model.pth')  # what `mldr-kd export` and timm write into a folder


class Weights(NamedTuple):
    """The weights of a checkpoint.

    Attributes:
        tensors: Name -> tensor, without the prefixes of wrappers.
        notes: Notes for the log, such as the key under which the weights were found.
    """

    tensors: dict[str, Tensor]
    notes: tuple[str, ...] = ()


def load_checkpoint(
    path: str, field: str = 'checkpoint', map_location: Any = 'cpu', read_tensors: bool = True
) -> dict[str, Any]:
    """Load the whole content of a checkpoint, including what a trainer needs to resume.

    Args:
        path: Path or URL of a ``.safetensors`` file or of a file written by ``torch.save``
            (whatever its extension), a folder with such a file named ``model.safetensors``,
            ``pytorch_model.bin`` or ``model.pth``, ``hf-hub:OWNER/NAME`` or
            ``hf-hub:OWNER/NAME@REVISION``.
            A download that is incomplete or no checkpoint is not kept.
        field: Name of the config field that holds the path, for error messages.
        map_location: Device of the tensors, as in ``torch.load``; tensors of a ``.safetensors``
            file stay on the CPU.
        read_tensors: Whether to read the data of the tensors and verify their checksums. If not,
            only the rest of the content may be used.

    Returns:
        The content: tensors, plain containers, numeric numpy arrays and scalars, and mmengine's
        ``HistoryBuffer``. A few other harmless kinds of objects are dropped from dicts and become
        None in lists.

    Raises:
        MissingFileError: There is no such file.
        ConfigError: The file cannot be read, is truncated, does not match its checksums (files of
            torch before 1.6 and ``.safetensors`` files have none), is not a dict, asks for any
            other object, or would take far more memory or time than its size explains
            (:mod:`mldr_kd_mm.utils.limits`). None of its code has been executed.
    """
    file = None
    try:
        file = local_file(path)
        if file.is_dir():
            raise MissingFileError(f'{field}={path!r}: is a folder; {_list_checkpoints(file)}')
        if not file.is_file():
            raise MissingFileError(f'{field}={path!r}: there is no such file')
        content = _read(file, map_location, read_tensors)
    except MissingFileError:
        raise
    except Exception as error:
        # torch passes on every exception of its unpickler and of the network.
        cached = file is not None and file != Path(path).expanduser()
        advice = f'; delete {file} to download it again' if cached else ''
        raise ConfigError(f'{field}={path!r}: {_reason(error)}{advice}') from error
    if not isinstance(content, dict):
        raise ConfigError(
            f'{field}={path!r}: must hold a dict, it holds a {type(content).__name__}'
        )
    return content


def has_training_state(content: dict[str, Any]) -> bool:
    """Return whether a checkpoint can be resumed, unlike an exported student's weights."""
    meta = content.get('meta')
    return isinstance(meta, dict) and 'iter' in meta


def class_names(content: dict[str, Any], path: str | None = None) -> tuple[str, ...]:
    """Return the names of the classes that a checkpoint states, as they are stored.

    Args:
        content: Content of the checkpoint.
        path: Its path, URL or hub name. The metadata of a ``.safetensors`` file is read, too.

    Returns:
        The names; empty if there are none.
    """
    meta = content.get('meta')
    stored = meta.get('dataset_meta') if isinstance(meta, dict) else None
    names = stored.get('classes') if isinstance(stored, dict) else None
    if names is None and path is not None and is_safetensors(file := local_file(path)):
        with safe_open(file, 'pt') as opened, suppress(ValueError, RecursionError):
            names = json.loads((opened.metadata() or {}).get('classes', 'null'))
    return tuple(map(str, names)) if isinstance(names, (list, tuple)) else ()


def use_safe_loading() -> None:
    """Make mmengine load checkpoints with :func:`load_checkpoint` until this process ends.

    This applies to ``load_from``, ``resume`` and ``init_cfg=dict(type='Pretrained', ...)`` of all
    Runners and models in the process, so importing the package does not do it. mmengine's own
    loader executes the code of a file that it cannot read otherwise (OneDL's fork), or cannot read
    its own checkpoints with torch 2.6 and later (0.10.7).
    """

    # mmengine logs the part of these names after load_from_.
    def load_from_file(filename: str, map_location: Any = None) -> dict[str, Any]:
        content = load_checkpoint(filename, map_location=map_location)
        # A Runner that resumes would execute this config, which only old checkpoints have.
        if isinstance(content.get('meta'), dict):
            content['meta'].pop('config', None)
        return content

    def load_from_elsewhere(filename: str, map_location: Any = None) -> NoReturn:
        raise ConfigError(f'checkpoint={filename!r}: must be a path, an http(s) URL or hf-hub:NAME')

    CheckpointLoader.register_scheme(['', 'http://', 'https://'], load_from_file, force=True)
    CheckpointLoader.register_scheme(_OTHER_SCHEMES, load_from_elsewhere, force=True)


def _list_checkpoints(folder: Path) -> str:
    """Return the advice for a folder that is given instead of a file."""
    suffixes = ('.safetensors', '.pth', '.pt', '.bin', '.ckpt')
    names = sorted(path.name for path in folder.iterdir() if path.suffix in suffixes)
    more = ', ...' if len(names) > 4 else ''
    found = ', '.join(map(printable, names[:4])) + more
    return f'must be a file in it: {found}' if found else 'it holds no checkpoint'


def _read(file: Path, map_location: Any, read_tensors: bool) -> Any:
    _check_file(file, read_tensors)
    if is_safetensors(file):
        return load_file(file)
    with torch.serialization.safe_globals(_STAND_INS), _Stream(file.open('rb', 0)) as stream:
        # torch takes the name of a .safetensors file at its word.
        by_name = _is_zip(file) and file.suffix != '.safetensors'
        content = torch.load(
            file if by_name else stream,
            map_location=map_location,
            weights_only=True,
            mmap=by_name and not read_tensors,
        )
    _check_tensors(content, file.stat().st_size)
    return _rebuild(content, {})


class _Stream(io.BufferedReader):
    """Stream without a file number, for which torch does not try to read a tar archive."""

    def fileno(self) -> int:
        raise io.UnsupportedOperation


def _check_file(file: Path, read_all: bool = True) -> None:
    """Raise a ValueError if a file is no checkpoint, was changed, or would unpack to too much.

    Args:
        file: The file.
        read_all: Whether to verify the checksums.
    """
    if is_safetensors(file):
        return
    if kind := describe_other_file(file):
        raise ValueError(f'it is {kind}')
    if _is_zip(file):
        _check_records(file, read_all)
        return
    size = file.stat().st_size
    with file.open('rb') as stream:
        for _ in range(_LEGACY_PICKLES):
            if stream.peek(1):
                _check_pickle(stream, size)


def _is_zip(file: Path) -> bool:
    with file.open('rb') as stream:
        return stream.read(4) == b'PK\x03\x04'


def _check_pickle(stream: BinaryIO, size: int) -> None:
    for name in sorted(check_pickle(stream, size)):
        bare = name.removesuffix('()')
        if name == _NEVER_CALLED or _NEVER.fullmatch(bare) and not _REBUILD.fullmatch(bare):
            raise UnpicklingError(f'WeightsUnpickler error: GLOBAL {bare}')


def _check_records(file: Path, read_all: bool) -> None:
    """Raise a ValueError if an archive of ``torch.save`` was changed; torch checks little."""
    with ZipFile(file) as archive:
        records = archive.infolist()
        if kind := describe_other_archive([record.filename for record in records]):
            raise ValueError(f'it is {kind}')
        is_intact = (
            _is_one_archive(file)
            # torch ignores the case of names.
            and len({record.filename.lower() for record in records}) == len(records)
            # A compressed record could unpack to a thousand times the size of the file, and for a
            # directory torch returns uninitialised memory.
            and all(record.compress_type == ZIP_STORED for record in records)
            and all(record.compress_size == record.file_size for record in records)
            and not any(record.external_attr & _MSDOS_DIRECTORY for record in records)
            and sum(record.file_size for record in records) <= file.stat().st_size
        )
        if not is_intact:
            raise ValueError('damaged, its records are not as torch.save writes them')
        # All are 0 if torch was told to save without checksums.
        has_checksums = read_all and any(record.CRC for record in records)
        damaged = archive.testzip() if has_checksums else None
        if damaged:
            raise ValueError(f'damaged, its record {damaged!r} does not match its checksum')
    with file.open('rb') as stream:
        for record in records:
            if record.filename.lower().endswith('data.pkl'):
                # Not by ZipFile, which would verify the checksum.
                stream.seek(record.header_offset)
                header = stream.read(_ZIP_HEADER)
                stream.seek(sum(struct.unpack('<2H', header[-4:])), io.SEEK_CUR)
                _check_pickle(io.BytesIO(stream.read(record.file_size)), record.file_size)


def _is_one_archive(file: Path) -> bool:
    """Return whether a file is one zip archive from its first byte to its last.

    Python looks for the directory of an archive relative to its end, torch relative to its
    beginning. In two archives, one after the other, they can find different ones.
    """
    size = file.stat().st_size
    with file.open('rb') as stream:
        tail_size = min(size, _ZIP64_END + _ZIP64_LOCATOR + _ZIP_END)
        stream.seek(size - tail_size)
        tail = stream.read()
    end = tail[-_ZIP_END:]
    if end[:4] != b'PK\x05\x06' or end[-2:] != bytes(2):
        return False
    length, start, directory_end = *struct.unpack('<2L', end[12:20]), size - _ZIP_END
    locator = tail[-_ZIP64_LOCATOR - _ZIP_END : -_ZIP_END]
    if locator[:4] == b'PK\x06\x07':
        directory_end = size - tail_size
        (stated_end,) = struct.unpack('<Q', locator[8:16])
        if stated_end != directory_end or tail[:4] != b'PK\x06\x06':
            return False
        length, start = struct.unpack('<2Q', tail[40:56])
    return start + length == directory_end


def _check_tensors(content: Any, size: int) -> None:
    """Raise a ValueError if the tensors are larger than a file of this size can hold.

    A view can repeat one number any number of times.
    """
    total, storages = 0, {}
    for tensor in _tensors(content):
        if tensor.layout != torch.strided:
            raise ValueError(f'holds a tensor of layout {tensor.layout}, must be dense')
        total += tensor.numel() * tensor.element_size()
        storage = tensor.untyped_storage()
        storages[storage._cdata] = storage.nbytes()
    if sum(storages.values()) > size or total > EXPANSION * size + TENSOR_ALLOWANCE:
        raise ValueError(f'its tensors have {total} bytes, the file only {size}')


def _tensors(content: Any) -> Iterator[Tensor]:
    """Yield each tensor once per place, each container's once."""
    seen, todo = set(), [content]
    while todo:
        value = todo.pop()
        if isinstance(value, Tensor):
            yield value
        elif isinstance(value, (dict, list, tuple)) and id(value) not in seen:
            seen.add(id(value))
            todo.extend(value.values() if isinstance(value, dict) else value)


def _rebuild(value: Any, done: dict[int, Any]) -> Any:
    """Replace stand-ins by the objects they stand for; dicts and lists are changed in place.

    Args:
        value: The loaded content.
        done: Results by the identity of what they replace, so that shared parts stay shared.
    """
    if id(value) in done:
        return done[id(value)]
    if isinstance(value, _History):
        result = value.rebuild()
    elif isinstance(value, PickledArray):
        result = value.value.copy()
    elif type(value) is tuple:
        result = tuple(None if _is_left_out(item) else _rebuild(item, done) for item in value)
    elif isinstance(value, (dict, list)):
        result = done[id(value)] = value  # it may hold itself
        if isinstance(value, dict):
            _rebuild_dict(value, done)
        else:
            value[:] = [None if _is_left_out(item) else _rebuild(item, done) for item in value]
    else:
        return value
    done[id(value)] = result
    return result


def _rebuild_dict(content: dict, done: dict[int, Any]) -> None:
    for key, item in list(content.items()):
        if _is_left_out(item):
            del content[key]
        else:
            content[key] = _rebuild(item, done)


def _is_left_out(value: Any) -> bool:
    if isinstance(value, PickledArray):
        return value.value is None
    return isinstance(value, (_Discarded, PickledDType))


def last_checkpoint_name(work_dir: Path) -> str | None:
    """Return the name in ``last_checkpoint``; None without such a file.

    The path in it is wrong if the work directory has been moved.

    Args:
        work_dir: The Runner's work directory.
    """
    note = work_dir / 'last_checkpoint'
    if not note.is_file():
        return None
    with note.open(errors='replace') as file:
        return printable(file.read(10_000).strip().rpartition('/')[2])


def local_file(path: str) -> Path:
    """Return the file of a checkpoint, see :func:`load_checkpoint`; one elsewhere is downloaded.

    Args:
        path: Path, URL or hub name. A folder stands for the file of weights in it.
    """
    if _HUB.match(path):
        with quiet_hub():
            return _download_from_hub(_HUB.sub('', path, count=1))
    if '://' in path:
        return _download(path)
    file = Path(path).expanduser()
    inside = [file / name for name in _FOLDER_FILES if (file / name).is_file()]
    return inside[0] if inside else file


def read_description(path: str, name: str) -> str | None:
    """Return the text of the file that describes the checkpoint of a folder or repository.

    Args:
        path: Path, URL or hub name of the checkpoint, see :func:`load_checkpoint`.
        name: Name of the other file.

    Returns:
        Its text; None if it cannot be read or downloaded, or the checkpoint has another name than
        the one that such a folder has.
    """
    try:
        if _HUB.match(path):
            from huggingface_hub import hf_hub_download

            repository, _, revision = _HUB.sub('', path, count=1).partition('@')
            with quiet_hub():
                file = Path(hf_hub_download(repository, name, revision=revision or None))
        elif '://' in path or local_file(path).name not in _FOLDER_FILES:
            return None
        else:
            file = local_file(path).with_name(name)
        return read_text(file, MAX_CONFIG_BYTES)
    except Exception:  # of the network, too
        return None


def _download(url: str) -> Path:
    """Download a file to torch's cache of checkpoints, if it is not there yet."""
    # Many runs end with an epoch_300.pth, so the name includes a hash of the whole URL.
    address = hashlib.sha256(url.encode()).hexdigest()[:12]
    name = Path(urlparse(url).path).name[-100:]
    file = Path(torch.hub.get_dir(), 'checkpoints', f'{address}-{name}')
    if not file.exists():
        file.parent.mkdir(parents=True, exist_ok=True)
        tell(f'Downloading {url} to {file}')
        download(url, file, MAX_DOWNLOAD, _check_file)
    return file


def _download_from_hub(name: str) -> Path:
    """Download a repository's weights to huggingface_hub's cache, if they are not there yet."""
    from huggingface_hub import hf_hub_download
    from huggingface_hub.errors import EntryNotFoundError, LocalEntryNotFoundError

    repository, _, revision = name.partition('@')
    unreachable = False
    for file in _HUB_FILES:
        try:
            # Without a network each request takes half a minute, so only the first one is sent.
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
        # torch's message would explain how to execute the code after all.
        text = text.rpartition('WeightsUnpickler error: ')[2]
        if refused := re.search(r'GLOBAL (\S+)', text):
            name = printable(refused[1])
            return f'refused: it asks for {name}; weights must be tensors in plain containers'
    first_line = (text.strip() or type(error).__name__).splitlines()[0]
    return f'cannot be read as weights: {printable(first_line)}'


def read_weights(path: str, field: str = 'checkpoint') -> Weights:
    """Load the weights of a checkpoint.

    The weights are the file's content itself or the first state dict under the keys
    ``state_dict_ema``, ``state_dict``, ``model``, ``model_state_dict``, ``module`` and
    ``model_ema``, or the only other entry that is a state dict. Prefixes of DistributedDataParallel
    and torch.compile are removed, and so is the counter of torch's AveragedModel. The weights of a
    distillation run are its student's.

    Args:
        path: Path, URL or hub name, see :func:`load_checkpoint`.
        field: Name of the config field that holds the path, for error messages.

    Returns:
        The weights, with a note if they were not in the usual place.

    Raises:
        MissingFileError: There is no such file.
        ConfigError: The file cannot be read or has no weights.
    """
    return find_weights(load_checkpoint(path, field), f'{field}={path!r}')


def find_weights(checkpoint: dict[str, Any], label: str) -> Weights:
    """Find the weights in the content of a checkpoint, see :func:`read_weights`.

    Args:
        checkpoint: The content.
        label: What to call the checkpoint in error messages.

    Returns:
        The weights, with a note if they were not in the usual place.

    Raises:
        ConfigError: The checkpoint has no weights.
    """
    found = find_state_dict(checkpoint, label)
    student = _student(found.tensors)
    if not student:
        return found
    return Weights(student, (*found.notes, 'of the student of a distillation run'))


def find_state_dict(checkpoint: dict[str, Any], label: str) -> Weights:
    """Find the state dict in a checkpoint; that of a distillation run is more than its student's.

    Args:
        checkpoint: The content.
        label: What to call the checkpoint in error messages.

    Returns:
        The weights, with a note if they were not in the usual place.

    Raises:
        ConfigError: The checkpoint has no weights.
    """
    candidates = {'': checkpoint} | {key: checkpoint.get(key) for key in _WEIGHT_KEYS}
    found = [key for key, content in candidates.items() if _is_state_dict(content)]
    if not found:
        others = {key: value for key, value in checkpoint.items() if _is_state_dict(value)}
        if len(others) != 1:
            names = ', '.join(map(repr, _WEIGHT_KEYS))
            keys = ', '.join(map(printable, list(checkpoint)[:20])) or 'nothing'
            several = ', '.join(map(printable, list(others)[:20]))
            raise ConfigError(
                f'{label}: has no weights under {names}; '
                + (f'must have one state dict, has {several}' if others else f'it has: {keys}')
            )
        candidates, found = others, list(others)
    weights = _unwrap(candidates[found[0]])
    notes = [] if found[0] in ('', 'state_dict') else [f'from {printable(repr(found[0]))}']
    return Weights(weights, tuple(notes))


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

    # Beside the wrapped model, torch.optim.swa_utils.AveragedModel has a counter.
    others = {name: value for name, value in weights.items() if name != _AVERAGED}
    if others and all(name.startswith(_WRAPPERS[0]) for name in others):
        weights = others
    while prefix := wrapper():  # wrappers are nested in any order
        weights = {name.removeprefix(prefix): value for name, value in weights.items()}
    return weights


def student_state_dict(checkpoint: dict[str, Any]) -> dict[str, Tensor]:
    """Return the student's weights from a checkpoint of a distillation run.

    Args:
        checkpoint: Content of the checkpoint.

    Returns:
        Name -> tensor, with the names of timm for a TimmClassifier and of mmpretrain otherwise.

    Raises:
        ConfigError: The weights are not a Distiller's.
    """
    weights = checkpoint.get('state_dict')
    student = _student(weights if _is_state_dict(weights) else {})
    if not student:
        raise ConfigError(
            'checkpoint: is not of a distillation run, but of one model, such as a teacher or an '
            'exported student; no weight is named student.*'
        )
    return student


def _student(weights: dict[str, Tensor]) -> dict[str, Tensor]:
    # A TimmClassifier's only child with weights is timm's model, named `model`.
    for prefix in ('student.model.', 'student.'):
        student = {
            key.removeprefix(prefix): value
            for key, value in weights.items()
            if key.startswith(prefix)
        }
        if student:
            return student
    return {}

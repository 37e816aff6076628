"""Load checkpoints from files, URLs and the Hugging Face hub without executing their code."""

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

from mldr_kd_mm.utils.errors import ConfigError, MissingFileError, printable
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

_HUB = re.compile('hf[-_]hub:')
_HUB_FILES = ('model.safetensors', 'pytorch_model.bin')


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
            (whatever its extension), ``hf-hub:OWNER/NAME`` or ``hf-hub:OWNER/NAME@REVISION``.
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
            torch before 1.6 and ``.safetensors`` files have none), is not a dict, or asks for any
            other object. None of its code has been executed.
    """
    try:
        file = _local_file(path)
        if not file.is_file():
            raise MissingFileError(f'{field}={path!r}: there is no such file')
        if file.suffix == '.safetensors':
            content = load_file(file)
        else:
            is_archive = _check_records(file, read_tensors)
            with torch.serialization.safe_globals(_STAND_INS):
                content = torch.load(
                    file,
                    map_location=map_location,
                    weights_only=True,
                    mmap=is_archive and not read_tensors,
                )
            content = _rebuild(content, set())
    except MissingFileError:
        raise
    except Exception as error:
        # torch passes on every exception of its unpickler and of the network.
        raise ConfigError(f'{field}={path!r}: {_reason(error)}') from error
    if not isinstance(content, dict):
        raise ConfigError(
            f'{field}={path!r}: must hold a dict, it holds a {type(content).__name__}'
        )
    return content


def has_training_state(content: dict[str, Any]) -> bool:
    """Return whether a checkpoint can be resumed, unlike an exported student's weights."""
    meta = content.get('meta')
    return isinstance(meta, dict) and 'iter' in meta


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


def _check_records(file: Path, read_all: bool) -> bool:
    """Raise a ValueError if an archive of ``torch.save`` was changed; torch checks little.

    Args:
        file: The file.
        read_all: Whether to verify the checksums.

    Returns:
        Whether it is an archive, and not a file of torch before 1.6, which has no checksums.
    """
    with file.open('rb') as stream:
        if stream.read(4) != b'PK\x03\x04':
            return False
    with ZipFile(file) as archive:
        records = archive.infolist()
        is_intact = (
            # torch ignores the case of names.
            len({record.filename.lower() for record in records}) == len(records)
            # A compressed record could unpack to a thousand times the size of the file, and for a
            # directory torch returns uninitialised memory.
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
    return True


def _rebuild(value: Any, seen: set[int]) -> Any:
    """Replace stand-ins by the objects they stand for; dicts and lists are changed in place."""
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
    """Download a file to torch's cache of checkpoints, if it is not there yet."""
    # Many runs end with an epoch_300.pth, so the name includes a hash of the whole URL.
    address = hashlib.sha256(url.encode()).hexdigest()[:12]
    file = Path(torch.hub.get_dir(), 'checkpoints', f'{address}-{Path(urlparse(url).path).name}')
    if not file.exists():
        file.parent.mkdir(parents=True, exist_ok=True)
        torch.hub.download_url_to_file(url, str(file))
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
    ``model_ema``. Prefixes of DistributedDataParallel and torch.compile are removed. The weights of
    a distillation run are its student's.

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
    candidates = {'': checkpoint} | {key: checkpoint.get(key) for key in _WEIGHT_KEYS}
    found = [key for key, content in candidates.items() if _is_state_dict(content)]
    if not found:
        keys = ', '.join(map(printable, list(checkpoint)[:20])) or 'nothing'
        raise ConfigError(
            f'{label}: has no weights under {", ".join(map(repr, _WEIGHT_KEYS))}; it has: {keys}'
        )
    weights = _unwrap(candidates[found[0]])
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
        raise ConfigError('checkpoint: is not of a distillation run; no weight is named student.*')
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

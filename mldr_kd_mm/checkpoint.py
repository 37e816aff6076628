"""Reading weights: a file, URL or hub name in, plain tensors out, and no code of the file's run."""

from __future__ import annotations

import hashlib
import re
from pathlib import Path
from pickle import UnpicklingError
from typing import Any, NamedTuple
from urllib.parse import urlparse

import torch
from safetensors.torch import load_file
from torch import Tensor

from mldr_kd_mm.errors import ConfigError


class _Discarded:
    """Stands for all that trainers write into a checkpoint beside tensors and plain containers.

    These are mmengine's logged scalars, the schedulers' numbers and the command lines of timm's and
    DeiT's trainers (a ``Namespace``, with paths in it), which nobody who wants weights needs.
    Their own classes would not be safe to allow: a numpy array can be told to take bytes for
    pointers, ``getattr`` leads anywhere, and a ``Namespace`` takes any attribute.
    """

    def __init__(self, *_: Any) -> None:
        pass

    def __setstate__(self, _: Any) -> None:
        pass


_STAND_INS = [
    (_Discarded, name)
    for name in (
        'argparse.Namespace',
        'builtins.getattr',
        'mmengine.logging.history_buffer.HistoryBuffer',
        'numpy.dtype',
        'numpy.ndarray',
        *(
            f'{module}.{kind}'
            for module in ('pathlib', 'pathlib._local')  # the latter of Python 3.13
            for kind in ('Path', 'PosixPath', 'WindowsPath', 'PurePosixPath', 'PureWindowsPath')
        ),
        *(
            f'numpy.{core}.multiarray.{function}'
            for core in ('core', '_core')  # of numpy 1 and numpy 2
            for function in ('_reconstruct', 'scalar')
        ),
    )
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


def load_checkpoint(path: str, field: str = 'checkpoint') -> dict[str, Any]:
    """Read a checkpoint onto the CPU.

    Args:
        path: Path or URL of a ``.safetensors`` file, or of a file of ``torch.save`` whatever its
            name ends in, or ``hf-hub:OWNER/NAME``, ``hf-hub:OWNER/NAME@REVISION``.
        field: Name of the config's field that holds the path, for the errors.

    Returns:
        The content of the file; objects of numpy's, mmengine's and the like are left out.

    Raises:
        FileNotFoundError: If there is no such file.
        ConfigError: If the file cannot be read, or is no dict of tensors and plain containers.
    """
    try:
        file = _local_file(path)
        if not file.is_file():
            raise FileNotFoundError(f'{field}={path!r}: there is no such file')
        if file.suffix == '.safetensors':
            content = load_file(file)
        else:
            with torch.serialization.safe_globals(_STAND_INS):
                content = torch.load(file, map_location='cpu', weights_only=True)
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
    refused = re.search(r'GLOBAL (\S+)', str(error))
    if isinstance(error, UnpicklingError) and refused:
        # torch would advise how to run it nevertheless.
        return f'refused: it asks for {refused[1]}, and weights are tensors and plain containers'
    first_line = (str(error).strip() or type(error).__name__).splitlines()[0]
    return f'cannot be read as weights: {printable(first_line)}'


def printable(content: Any) -> str:
    """What of a file's content may go into a message of one line."""
    return ''.join(filter(str.isprintable, str(content)))


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
    student = _student(weights if isinstance(weights, dict) else {})
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

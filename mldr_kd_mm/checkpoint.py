"""Reading weights: a file or URL in, plain tensors out, and no code of the file's ever run."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Collection
from pathlib import Path
from pickle import UnpicklingError
from typing import Any
from urllib.parse import urlparse

import torch
from safetensors.torch import load_file
from torch import Tensor

from mldr_kd_mm.errors import ConfigError


class _Discarded:
    """Stands for all that mmengine writes into a checkpoint beside tensors and plain containers.

    These are the logged scalars and the schedulers' numbers, which nobody who wants weights needs.
    Their own classes would not be safe to allow: a numpy array can be told to take bytes for
    pointers, and ``getattr`` leads anywhere.
    """

    def __init__(self, *_: Any) -> None:
        pass

    def __setstate__(self, _: Any) -> None:
        pass


_STAND_INS = [
    (_Discarded, name)
    for name in (
        'builtins.getattr',
        'mmengine.logging.history_buffer.HistoryBuffer',
        'numpy.dtype',
        'numpy.ndarray',
        *(
            f'numpy.{core}.multiarray.{function}'
            for core in ('core', '_core')  # of numpy 1 and numpy 2
            for function in ('_reconstruct', 'scalar')
        ),
    )
]


def load_checkpoint(path: str, field: str = 'checkpoint') -> dict[str, Any]:
    """Read a checkpoint onto the CPU.

    Args:
        path: Path or URL of a ``.pth`` or ``.safetensors`` file.
        field: Name of the config's field that holds the path, for the errors.

    Returns:
        The content of the file; numpy's and mmengine's objects in it are left out.

    Raises:
        FileNotFoundError: If there is no such file.
        ConfigError: If the file cannot be read, or is no dict of tensors and plain containers.
    """
    try:
        file = _download(path) if '://' in path else Path(path).expanduser()
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


def _download(url: str) -> Path:
    """Fetch a file once, to where torch keeps checkpoints."""
    # Many a run ends with an epoch_300.pth: the whole address tells them apart.
    address = hashlib.sha256(url.encode()).hexdigest()[:12]
    file = Path(torch.hub.get_dir(), 'checkpoints', f'{address}-{Path(urlparse(url).path).name}')
    if not file.exists():
        file.parent.mkdir(parents=True, exist_ok=True)
        torch.hub.download_url_to_file(url, str(file))
    return file


def _reason(error: Exception) -> str:
    refused = re.search(r'GLOBAL (\S+)', str(error))
    if isinstance(error, UnpicklingError) and refused:
        # torch would advise how to run it nevertheless.
        return f'refused: it asks for {refused[1]}, and weights are tensors and plain containers'
    first_line = (str(error) or type(error).__name__).splitlines()[0]
    return f'cannot be read as weights: {"".join(filter(str.isprintable, first_line))}'


def load_state_dict(path: str, field: str = 'checkpoint') -> dict[str, Tensor]:
    """Read the weights of a checkpoint, as mmengine saves them or bare.

    Args:
        path: Path or URL of the checkpoint.
        field: Name of the config's field that holds the path, for the errors.

    Returns:
        Name -> tensor.

    Raises:
        FileNotFoundError: If there is no such file.
        ConfigError: If the file cannot be read or holds no weights.
    """
    checkpoint = load_checkpoint(path, field)
    state_dict = checkpoint.get('state_dict', checkpoint)
    if not isinstance(state_dict, dict) or not _are_tensors(state_dict.values()):
        there = ', '.join(map(str, checkpoint)) or 'nothing'
        raise ConfigError(f"{field}={path!r}: has no weights under 'state_dict'; it has: {there}")
    return state_dict


def _are_tensors(values: Collection[Any]) -> bool:
    return bool(values) and all(isinstance(value, Tensor) for value in values)


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
    weights = weights if isinstance(weights, dict) else {}
    # A TimmClassifier holds timm's model as its only child with weights.
    for prefix in ('student.model.', 'student.'):
        student = {
            key.removeprefix(prefix): value
            for key, value in weights.items()
            if key.startswith(prefix)
        }
        if student:
            return student
    raise ConfigError('checkpoint: is not of a distillation run: no weight is named student.*')

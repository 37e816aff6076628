"""Reading weights: a file or URL in, plain tensors out, and no code of the file's ever run."""

from __future__ import annotations

from pathlib import Path
from typing import Any

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
        ConfigError: If the file cannot be read, or holds more than tensors and plain containers.
    """
    is_url = '://' in path
    if not is_url and not Path(path).is_file():
        raise FileNotFoundError(f'{field}={path!r}: there is no such file')
    try:
        if path.endswith('.safetensors') and not is_url:
            return load_file(path)
        with torch.serialization.safe_globals(_STAND_INS):
            if is_url:
                return torch.hub.load_state_dict_from_url(
                    path, map_location='cpu', weights_only=True
                )
            return torch.load(path, map_location='cpu', weights_only=True)
    except Exception as error:
        # torch raises whatever its unpickler or the network meets; the first line says which.
        reason = (str(error) or type(error).__name__).splitlines()[0]
        raise ConfigError(f'{field}={path!r}: cannot be read as weights: {reason}') from error


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
    state_dict = checkpoint.get('state_dict', checkpoint) if isinstance(checkpoint, dict) else None
    if not state_dict or not all(isinstance(value, Tensor) for value in state_dict.values()):
        raise ConfigError(f"{field}={path!r}: holds no 'state_dict' and is none itself")
    return dict(state_dict)


def student_state_dict(state_dict: dict[str, Tensor]) -> dict[str, Tensor]:
    """Take the plain student out of a Distiller's weights.

    Args:
        state_dict: The ``state_dict`` of a checkpoint of a distillation run.

    Returns:
        Name -> tensor, named as mmpretrain has them, or timm, for a TimmClassifier.

    Raises:
        ConfigError: If the weights are not a Distiller's.
    """
    # A TimmClassifier holds timm's model as its only child with weights.
    for prefix in ('student.model.', 'student.'):
        student = {
            key.removeprefix(prefix): value
            for key, value in state_dict.items()
            if key.startswith(prefix)
        }
        if student:
            return student
    raise ConfigError('checkpoint: is not of a distillation run: no weight is named student.*')

"""Reading weights: a file or URL in, plain tensors out, and no code of the file's ever run."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import torch
from mmengine.logging import HistoryBuffer
from safetensors.torch import load_file
from torch import Tensor

from mldr_kd_mm.errors import ConfigError

# What mmengine writes into a checkpoint beside tensors and plain containers: the logged scalars.
# Both of numpy's spellings are allowed, since the file may come from the other one.
_reconstruct = np.empty(0).__reduce__()[0]
_SAFE_GLOBALS = [
    HistoryBuffer,
    np.ndarray,
    np.dtype,
    *(type(np.dtype(kind)) for kind in (np.float64, np.float32, np.int64, np.int32, np.bool_)),
    (_reconstruct, 'numpy._core.multiarray._reconstruct'),
    (_reconstruct, 'numpy.core.multiarray._reconstruct'),
]


def load_checkpoint(path: str, field: str = 'checkpoint') -> dict[str, Any]:
    """Read a checkpoint onto the CPU.

    Args:
        path: Path or URL of a ``.pth`` or ``.safetensors`` file.
        field: Name of the config's field that holds the path, for the errors.

    Returns:
        The content of the file.

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
        with torch.serialization.safe_globals(_SAFE_GLOBALS):
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

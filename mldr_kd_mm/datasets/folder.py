"""Whether a file is an image."""

from mmcv import imfrombytes
from mmengine.fileio import get

from mldr_kd_mm.utils.errors import ConfigError


def check_image(path: str, advice: str) -> None:
    """Read a file as an image.

    Args:
        path: The file.
        advice: What to do where it is none, for the error.

    Raises:
        ConfigError: The file is no whole image, or one of more pixels than OpenCV takes.
    """
    try:
        reason = 'it is damaged' if imfrombytes(get(path)) is None else None
    except Exception as error:  # of OpenCV, or of whatever holds the file
        reason = str(error).strip().splitlines()[0]
    if reason:
        raise ConfigError(f'{path}: cannot be read as an image ({reason}); {advice}')

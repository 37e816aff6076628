"""Recognise files that are given as a checkpoint but are none."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

_LINK_ADVICE = 'download the file itself'
# First bytes, without white space, in lower case -> what the file is, and what to do about it.
_KINDS = {
    b'version https://git-lfs': 'a Git LFS pointer, not the file itself; run git lfs pull',
    b'<!doctype html': f'a web page; {_LINK_ADVICE}',
    b'<html': f'a web page; {_LINK_ADVICE}',
    b'<?xml': f'an XML document; {_LINK_ADVICE}',
    b'{': 'a JSON file; give the file with the weights',
    b'\x1f\x8b': 'a gzip archive; unpack it',
    b'bzh': 'a bzip2 archive; unpack it',
    b'\xfd7zxz': 'an xz archive; unpack it',
    b'\x89hdf': 'an HDF5 file (Keras); convert it to PyTorch',
    b'\x93numpy': 'a NumPy array; must be saved by torch.save',
    b'gguf': 'a GGUF file; must be saved by torch.save',
}
_HEAD = 512
_TAR_MAGIC = slice(257, 262)


def describe_other_file(path: Path) -> str | None:
    """Return what a file is, with advice, if it is a known kind of file other than a checkpoint.

    The content of zip archives is left to :func:`describe_other_archive`.
    """
    with path.open('rb') as file:
        head = file.read(_HEAD)
    if not head:
        return 'empty'
    if head[_TAR_MAGIC] == b'ustar':
        return 'a tar archive; unpack it'
    start = head.lstrip().lower()
    return next((kind for magic, kind in _KINDS.items() if start.startswith(magic)), None)


def describe_other_archive(names: Sequence[str]) -> str | None:
    """Return what a zip archive is, with advice, if it is not one of ``torch.save``.

    Args:
        names: The names of its files.
    """
    last = {name.rpartition('/')[2] for name in names}
    if 'constants.pkl' in last:
        return 'a TorchScript archive; save the state_dict of the model with torch.save'
    if 'data.pkl' in last:
        return None
    if any(name.endswith('.npy') for name in names):
        return 'a NumPy archive; must be saved by torch.save'
    if any(name.endswith('.pt2') or 'exported_program' in name for name in names):
        return 'a torch.export program; give the checkpoint that it was exported from'
    return 'a zip archive without a checkpoint; unpack it'


def is_safetensors(path: Path) -> bool:
    """Return whether a file has the header of a ``.safetensors`` file."""
    with path.open('rb') as file:
        head = file.read(9)
    return head[8:] == b'{' and int.from_bytes(head[:8], 'little') <= path.stat().st_size - 8

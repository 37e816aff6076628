"""Environment of a result: commit, versions and device."""

from __future__ import annotations

import platform
import subprocess
from importlib import metadata
from pathlib import Path

import torch

from mldr_kd_mm.version import __version__

MODULES = ('torch', 'timm', 'mmengine', 'mmcv', 'mmpretrain')
_ROOT = Path(__file__).resolve().parents[2]


def describe_environment() -> dict[str, str]:
    """Return commit, device and versions.

    Returns:
        ``commit`` of this project, with ``+changes`` if files differ, or its version outside a git
        checkout; ``device``, the name of the GPU or, without one, of the processor; the version of
        ``python`` and of each of :data:`MODULES`, after the distribution's name if that differs.
    """
    versions = {}
    # packages_distributions() of Python 3.10 does not know every wheel.
    for distribution in metadata.distributions():
        folders = {file.parts[0] for file in distribution.files or ()}
        for module in folders.intersection(MODULES):
            name, version = distribution.name, distribution.version
            # If two are installed, the first is the one that Python imports.
            versions.setdefault(module, version if name == module else f'{name} {version}')
    return versions | dict(commit=_commit(), device=_device(), python=platform.python_version())


def _commit() -> str:
    def git(*arguments: str) -> str:
        command = ['git', '-C', str(_ROOT), *arguments]
        return subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()

    try:
        if Path(git('rev-parse', '--show-toplevel')) == _ROOT:
            changes = '+changes' if git('status', '--porcelain') else ''
            return git('rev-parse', 'HEAD') + changes
    except (OSError, subprocess.CalledProcessError):
        pass
    return f'mldr_kd_mm {__version__}'


def _device() -> str:
    if torch.cuda.is_available():
        count = torch.cuda.device_count()
        return ', '.join(sorted({torch.cuda.get_device_name(i) for i in range(count)}))
    info = Path('/proc/cpuinfo')
    lines = info.read_text().splitlines() if info.is_file() else []
    names = [line.split(':')[1].strip() for line in lines if line.startswith('model name')]
    return names[0] if names else platform.machine()

"""The configs that the package carries, for projects that inherit them."""

from __future__ import annotations

from difflib import get_close_matches
from fnmatch import filter as matching
from pathlib import Path

from mmengine.config.utils import MODULE2PACKAGE
from mmengine.fileio import load

from mldr_kd_mm.utils.errors import ConfigError

# A wheel has the files here. In the repository, which an editable install uses, these are links to
# the folders beside the package.
MIM = Path(__file__).parents[1] / '.mim'
CONFIGS = MIM / 'configs'

# mmengine takes 'NAME::mldr/…' for the names in this table only, and looks for .mim beside what the
# table gives for it: a distribution, or else a module. It looks for a distribution in site-packages
# only, which an editable install is not in; a module beside .mim is found in both cases.
MODULE2PACKAGE['mldr_kd_mm'] = 'mldr_kd_mm.registry'


def config_path(name: str) -> str:
    """Return where a shipped config is, for ``Config.fromfile`` or another config's ``_base_``.

    ``_base_ = [__import__('mldr_kd_mm').config_path('mldr/deit_to_mobilenet_c100.py')]`` works in
    any config. ``_base_ = 'mldr_kd_mm::mldr/deit_to_mobilenet_c100.py'`` is the same where
    ``mldr_kd_mm`` was imported before the config is read.

    Args:
        name: One of :func:`list_configs`, or a base, as ``_base_/methods/mldr.py``.

    Returns:
        The path of the file.

    Raises:
        ConfigError: If there is no config of that name.
    """
    names = [path.relative_to(CONFIGS).as_posix() for path in CONFIGS.rglob('*.py')]
    if name not in names:
        near = get_close_matches(str(name), names, n=4, cutoff=0.5)
        hint = f'; did you mean {" or ".join(near)}?' if near else ': see list_configs()'
        raise ConfigError(f'config_path({name!r}): there is no config of that name{hint}')
    return str(CONFIGS / name)


def list_configs(pattern: str | None = None) -> list[str]:
    """Return the names of the shipped configs that can be trained.

    Args:
        pattern: None for all, or what a name must match, as ``'mldr/*'`` or ``'*_to_resnet18_*'``.

    Returns:
        Names as ``mldr/deit_to_mobilenet_c100.py``, sorted.
    """
    metafiles = [load(MIM / path) for path in load(MIM / 'model-index.yml')['Import']]
    paths = [model['Config'] for metafile in metafiles for model in metafile['Models']]
    return sorted(matching([path.removeprefix('configs/') for path in paths], pattern or '*'))

"""mldr_kd_mm: distil image classifiers across architectures, with mmengine."""

import sys
from importlib import import_module
from os.path import basename
from typing import TYPE_CHECKING, Any

from mldr_kd_mm.version import __version__ as __version__

_SUBPACKAGES = ('datasets', 'engine', 'models')


def _is_command_line() -> bool:
    """Whether this process is ``mldr-kd`` or ``python -m mldr_kd_mm``."""
    script = getattr(sys.modules['__main__'], '__file__', None)
    if script is not None:
        return basename(script) == 'mldr-kd'
    # While Python looks for the module of `-m`, sys.argv is ['-m', *arguments].
    return sys.argv[:1] == ['-m'] and sys.orig_argv[-len(sys.argv)] == __name__


def _import_public_names() -> None:
    """Import the whole package, which registers its modules, and bind the public names."""
    apis = import_module('mldr_kd_mm.apis')
    public = {name: import_module(f'mldr_kd_mm.{name}') for name in _SUBPACKAGES}
    public |= {name: getattr(apis, name) for name in apis.__all__}
    globals().update(public, __all__=['__version__', *public])


# `import mldr_kd_mm` registers everything under mmpretrain's registries and lets configs inherit
# `mldr_kd_mm::…`, so it has to import torch, mmengine and mmpretrain (several seconds of CPU time).
# Python also imports the package before it runs the command line, where `--help` must answer at
# once. Only in that case is the import deferred until a command runs and uses a public name.
if TYPE_CHECKING:
    from mldr_kd_mm import datasets as datasets
    from mldr_kd_mm import engine as engine
    from mldr_kd_mm import models as models
    from mldr_kd_mm.apis import *  # noqa: F403
elif not _is_command_line():
    _import_public_names()


def __getattr__(name: str) -> Any:
    is_public = name == '__all__' or not name.startswith('_')
    if is_public and '__all__' not in globals():
        _import_public_names()
        if name in globals():
            return globals()[name]
    raise AttributeError(f'module {__name__!r} has no attribute {name!r}')


def __dir__() -> list[str]:
    if '__all__' not in globals():
        _import_public_names()
    return sorted(globals())

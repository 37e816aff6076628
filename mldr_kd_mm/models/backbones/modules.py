"""Classifiers around modules of other libraries and of the user."""

from __future__ import annotations

import copy
import importlib
from collections.abc import Callable, Mapping
from functools import partial
from types import ModuleType
from typing import Any

import torchvision
from mmengine.model import initialize
from mmpretrain.models import BaseClassifier, TimmClassifier
from torch import Tensor, nn
from torchvision.models import list_models

from mldr_kd_mm.registry import MODELS
from mldr_kd_mm.utils.errors import (
    ConfigError,
    check_switch,
    checked_arguments,
    describe,
    did_you_mean,
    printable,
)
from mldr_kd_mm.utils.stored_config import is_trusted

_MODULES: dict[str, nn.Module] = {}


class _WrappedModule(TimmClassifier):
    """Train a module that maps images (B, 3, H, W) to logits (B, C).

    Its checkpoints have the module's own names.
    """

    def __init__(
        self,
        module: nn.Module,
        loss: dict | None,
        train_cfg: dict | None,
        data_preprocessor: dict | None,
        init_cfg: dict | None = None,
        has_head: bool = True,
    ) -> None:
        preprocessor = {'type': 'mldr_kd_mm.ClsDataPreprocessor', **(data_preprocessor or {})}
        if train_cfg is not None and 'augments' in train_cfg:
            preprocessor['batch_augments'] = train_cfg
        # mmengine would not find its scope without a default scope.
        preprocessor = MODELS.build(preprocessor)
        BaseClassifier.__init__(self, init_cfg=init_cfg, data_preprocessor=preprocessor)
        # A hook instead of a wrapper: the names of the weights and taps stay the module's.
        module.register_forward_hook(partial(_only, 'logits' if has_head else 'pooler_output'))
        if not has_head:
            self.has_head = False
        self.model = module
        self.loss_module = MODELS.build(loss or dict(type='CrossEntropyLoss'))
        self._register_state_dict_hook(self._remove_state_dict_prefix)
        self._register_load_state_dict_pre_hook(self._add_state_dict_prefix)

    def init_weights(self) -> None:
        """Keep the weights of the module, unless ``init_cfg`` names others."""
        if self.init_cfg:
            initialize(self, self.init_cfg)
        self._is_init = True


@MODELS.register_module()
class ModuleClassifier(_WrappedModule):
    """Train a module that a function of any package returns.

    The function's module is imported, which runs its code: configs that were stored by a run may
    only name torchvision's models and modules that ``--imports`` names.

    Args:
        module: ``PACKAGE.MODULE:FUNCTION``. The function, or class, returns an ``nn.Module`` that
            maps images (B, 3, H, W) to logits (B, C), to a tuple whose first item is the logits, or
            to an object or a dict with ``logits``, as in Hugging Face's transformers.
        kwargs: Arguments of the function.
        has_head: Whether the module gives logits. False: it gives a feature (B, D), as
            ``pooler_output`` if it is an object or a dict.
        loss: Config of the loss.
        train_cfg: As in mmpretrain's TimmClassifier.
        data_preprocessor: Config of the data preprocessor.
        init_cfg: As in mmengine's BaseModule. None: keep the weights that the function sets.

    Raises:
        ConfigError: If ``module`` does not name a function that returns an ``nn.Module``.

    Examples:
        >>> config = dict(
        ...     type='ModuleClassifier',
        ...     module='torchvision.models:resnet18',
        ...     kwargs=dict(num_classes=37),
        ... )
    """

    @checked_arguments
    def __init__(
        self,
        module: str,
        kwargs: dict | None = None,
        has_head: bool = True,
        loss: dict | None = None,
        train_cfg: dict | None = None,
        data_preprocessor: dict | None = None,
        init_cfg: dict | None = None,
    ) -> None:
        check_switch(has_head=has_head)
        function = find_function(module)
        try:
            built = function(**(kwargs or {}))
        except Exception as error:
            raise ConfigError(f'module={module!r}, kwargs={kwargs}: {describe(error)}') from error
        if not isinstance(built, nn.Module):
            kind = type(built).__name__
            raise ConfigError(f'module={module!r}: must return an nn.Module, not {kind}')
        super().__init__(built, loss, train_cfg, data_preprocessor, init_cfg, has_head)

    @staticmethod
    def check_stored(config: Mapping[str, Any], field: str) -> None:
        """Refuse a stored config whose function the user does not trust.

        Args:
            config: Config of the classifier.
            field: Its name.

        Raises:
            ConfigError: If ``module`` is neither a model of torchvision nor from a package that
                ``--imports`` names.
        """
        package, _, function = str(config.get('module')).partition(':')
        if package == 'mldr_kd_mm.models.backbones.hugging_face':
            package = 'transformers'
        models = list_models(torchvision.models) if package == 'torchvision.models' else []
        if function not in models and not is_trusted(package):
            raise ConfigError(
                f'{field}.module={printable(config.get("module"))!r}: is code that the run '
                f'imported; if you trust it, add --imports {printable(package)}'
            )


@MODELS.register_module()
class BuiltClassifier(_WrappedModule):
    """Train a copy of a module that the caller of this process has built.

    It keeps the weights that the module has. :func:`describe_module` returns its config, in which a
    name stands for the module, so another process cannot build it.

    Args:
        model_name: The name.
        loss: Config of the loss.
        train_cfg: As in mmpretrain's TimmClassifier.
        data_preprocessor: Config of the data preprocessor.
        init_cfg: Ignored.

    Raises:
        ConfigError: If the process has no module of that name.
    """

    @checked_arguments
    def __init__(
        self,
        model_name: str,
        loss: dict | None = None,
        train_cfg: dict | None = None,
        data_preprocessor: dict | None = None,
        init_cfg: dict | None = None,
    ) -> None:
        if model_name not in _MODULES:
            raise ConfigError(
                f'model_name={model_name!r}: the module was built in another process; load the '
                'exported weights into yours with load_state_dict'
            )
        module = copy.deepcopy(_MODULES[model_name])
        super().__init__(module, loss, train_cfg, data_preprocessor)


def describe_module(module: nn.Module) -> dict[str, Any]:
    """Return the config of a :class:`BuiltClassifier`, which is valid in this process.

    Args:
        module: The module. It is not changed: a classifier has a copy of it.
    """
    kind = type(module).__name__
    name, number = kind, 1
    while _MODULES.setdefault(name, module) is not module:
        number += 1
        name = f'{kind}-{number}'
    return dict(type='BuiltClassifier', model_name=name)


def find_function(name: str) -> Callable[..., Any]:
    """Import a function or a class.

    Args:
        name: ``PACKAGE.MODULE:FUNCTION``, where FUNCTION may be a method, ``CLASS.METHOD``, but not
            lead through another module.

    Raises:
        ConfigError: If there is no such function.
    """
    package, _, path = name.partition(':')
    if not package or not path:
        raise ConfigError(
            f"module={name!r}: must be PACKAGE.MODULE:FUNCTION, as in 'torchvision.models:resnet18'"
        )
    try:
        found = importlib.import_module(package)
    except Exception as error:
        reason = describe(error)
        raise ConfigError(f'module={name!r}: {package} cannot be imported: {reason}') from error
    for part in path.split('.'):
        if not hasattr(found, part):
            hint = did_you_mean(part, [key for key in vars(found) if not key.startswith('_')])
            raise ConfigError(f'module={name!r}: {package} has no {path}' + (hint and f'; {hint}'))
        found = getattr(found, part)
        # A stored config would get from a module that the user trusts to those that it imports.
        if isinstance(found, ModuleType):
            raise ConfigError(
                f'module={name!r}: {part} is a module; must be {found.__name__}:FUNCTION'
            )
    if not callable(found):
        kind = type(found).__name__
        raise ConfigError(f'module={name!r}: must be a function or a class, not {kind}')
    return found


def _only(name: str, module: nn.Module, args: tuple, output: Any) -> Tensor:
    """Return the logits of what a module returns, or another tensor by name; a forward hook."""
    found = output
    if isinstance(output, Mapping):
        found = output.get(name)
    elif hasattr(output, name):
        found = getattr(output, name)
    elif isinstance(output, (tuple, list)) and output:
        found = output[0]
    if not isinstance(found, Tensor) or found.ndim != 2:
        shape = tuple(found.shape) if isinstance(found, Tensor) else type(output).__name__
        raise ConfigError(
            f'{type(module).__name__}: must return {name} (B, C), or a tuple, an object or a dict '
            f'with them, not {shape}'
        )
    return found

"""A classifier around a module that the user has built."""

from __future__ import annotations

import copy
from typing import Any

from mmpretrain.models import BaseClassifier, TimmClassifier
from torch import nn

from mldr_kd_mm.registry import MODELS
from mldr_kd_mm.utils.errors import ConfigError, checked_arguments

_MODULES: dict[str, nn.Module] = {}


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


@MODELS.register_module()
class BuiltClassifier(TimmClassifier):
    """Train a copy of a module that maps images (B, 3, H, W) to logits (B, C).

    It keeps the weights that the module has. :func:`describe_module` returns its config, in which a
    name stands for the module, so another process cannot build it.

    Args:
        model_name: The name.
        loss: Config of the loss.
        train_cfg: As in mmpretrain's TimmClassifier.
        data_preprocessor: Config of the data preprocessor.
        init_cfg: Ignored.

    Raises:
        ConfigError: The process has no module of that name.
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
        preprocessor = {'type': 'mldr_kd_mm.ClsDataPreprocessor', **(data_preprocessor or {})}
        if train_cfg is not None and 'augments' in train_cfg:
            preprocessor['batch_augments'] = train_cfg
        BaseClassifier.__init__(self, data_preprocessor=preprocessor)
        self.model = copy.deepcopy(_MODULES[model_name])
        self.loss_module = MODELS.build(loss or dict(type='CrossEntropyLoss'))
        self._register_state_dict_hook(self._remove_state_dict_prefix)
        self._register_load_state_dict_pre_hook(self._add_state_dict_prefix)

    def init_weights(self) -> None:
        """Keep the weights of the module."""

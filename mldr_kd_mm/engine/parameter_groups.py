"""Few parameter groups, so that an optimizer's step takes few kernels."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from mmengine.optim import (
    DefaultOptimWrapperConstructor,
    OptimWrapper,
    ZeroRedundancyOptimizer,
)
from mmpretrain.engine import LearningRateDecayOptimWrapperConstructor
from torch import Tensor, nn

from mldr_kd_mm.registry import OPTIM_WRAPPER_CONSTRUCTORS

# mmpretrain's layer-wise decay names the parameter of each group.
_NOT_SETTINGS = ('params', 'param_name')


def merge_groups(groups: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """Merge parameter groups with equal settings.

    Args:
        groups: ``param_groups`` of an optimizer.

    Returns:
        One group for each combination of settings, in the order of the first of each.
    """
    merged: dict[str, dict[str, Any]] = {}
    for group in groups:
        settings = {name: value for name, value in group.items() if name not in _NOT_SETTINGS}
        target = merged.setdefault(_key(settings), dict(settings, params=[]))
        target['params'] += group['params']
    return list(merged.values())


def group_names(model: nn.Module, groups: Sequence[Mapping[str, Any]]) -> list[list[str]]:
    """Return the names of the parameters in each group of an optimizer.

    Args:
        model: The model, without a distributed wrapper.
        groups: ``param_groups`` of the optimizer.
    """
    names = {id(parameter): name for name, parameter in model.named_parameters()}
    return [[names.get(id(parameter), '') for parameter in group['params']] for group in groups]


def saved_names(checkpoint: Mapping[str, Any], present: list[list[str]]) -> list[list[str]] | None:
    """Return the names of the parameters in each group of an optimizer's saved state.

    Checkpoints of earlier versions have no names. Their groups are those of the optimizer, or one
    for each parameter in the order of the model.

    Args:
        checkpoint: Content of the checkpoint.
        present: The names in each group of the optimizer that loads it, see :func:`group_names`.

    Returns:
        The names; None if the groups do not fit the optimizer.
    """
    sizes = [len(group['params']) for group in checkpoint['optimizer']['param_groups']]
    trained = [name for names in present for name in names]
    names = checkpoint['meta'].get('parameter_groups')
    if names is None and sizes == [len(each) for each in present]:
        names = present
    elif names is None and sizes == [1] * len(trained):
        # A TimmClassifier saves its weights without the prefix ``model.``.
        saved = [(name, f'model.{name}') for name in checkpoint['state_dict']]
        in_model = [name for names in saved for name in names if name in {*trained}]
        return [[name] for name in in_model] if len(in_model) == len(trained) else None
    fits = names is not None and sizes == [len(each) for each in names]
    has_settings_for_all = (len(sizes) == 1) == (len(present) == 1)
    is_same = fits and sorted(name for each in names for name in each) == sorted(trained)
    return names if is_same and has_settings_for_all else None


def regroup(checkpoint: dict[str, Any], present: list[list[str]]) -> None:
    """Arrange the groups of a saved optimizer state as those of the optimizer that loads it.

    Args:
        checkpoint: Content of the checkpoint; the states of its optimizer and schedules are
            changed.
        present: The names in each group of the optimizer.
    """
    names = saved_names(checkpoint, present)
    if names is None or names == present:
        return
    saved = checkpoint['optimizer']['param_groups']
    places = {name: place for place, each in enumerate(names) for name in each}
    ids = {
        name: number
        for group, each in zip(saved, names, strict=True)
        for name, number in zip(each, group['params'], strict=True)
    }
    first = [places[each[0]] for each in present]
    checkpoint['optimizer']['param_groups'] = [
        saved[place] | dict(params=[ids[name] for name in each])
        for place, each in zip(first, present, strict=True)
    ]
    for state in checkpoint.get('param_schedulers') or []:
        for name, values in state.items():
            # One for each group, and one for the settings of no group, which mmengine logs.
            if isinstance(values, list) and len(values) in (len(saved), len(saved) + 1):
                state[name] = [values[place] for place in first] + values[len(saved) :]


def _key(settings: Mapping[str, Any]) -> str:
    values = {
        name: value.tolist() if isinstance(value, Tensor) else value
        for name, value in sorted(settings.items())
    }
    return repr(values)


class _MergesGroups:
    """Merges the groups that a constructor has made, one for each parameter."""

    def __call__(self, model: nn.Module) -> OptimWrapper:
        wrapper = super().__call__(model)
        # ZeroRedundancyOptimizer has copied its groups into the optimizer of each process.
        if not isinstance(wrapper.optimizer, ZeroRedundancyOptimizer):
            groups = wrapper.optimizer.param_groups
            groups[:] = merge_groups(groups)
        return wrapper


# The names replace mmengine's and mmpretrain's constructors in runs with our default scope.
@OPTIM_WRAPPER_CONSTRUCTORS.register_module(name='DefaultOptimWrapperConstructor')
class MergingOptimWrapperConstructor(_MergesGroups, DefaultOptimWrapperConstructor):
    """mmengine's constructor, with one parameter group for each combination of settings.

    With ``paramwise_cfg``, mmengine's makes a group for each parameter, and a fused optimizer takes
    some kernels for each group. The settings of each parameter are the same.
    """


@OPTIM_WRAPPER_CONSTRUCTORS.register_module(name='LearningRateDecayOptimWrapperConstructor')
class MergingDecayOptimWrapperConstructor(_MergesGroups, LearningRateDecayOptimWrapperConstructor):
    """mmpretrain's layer-wise learning-rate decay, with one group for each combination."""

"""An FSDP strategy for mmengine's FlexibleRunner that fits a Distiller."""

from __future__ import annotations

from typing import Any

import torch
from mmengine._strategy import FSDPStrategy
from mmengine.registry import FUNCTIONS
from mmpretrain.models import BaseClassifier, ClsHead
from torch import nn
from torch.distributed.fsdp import FullyShardedDataParallel
from torch.distributed.fsdp.wrap import size_based_auto_wrap_policy

from mldr_kd_mm.models.distillers.loss_entry import LossEntry
from mldr_kd_mm.models.necks.msdf import StageClassifier
from mldr_kd_mm.registry import STRATEGIES

# FSDP gathers the weights of a unit when the unit is called. A module cannot be a unit if others
# call its parts: a Distiller calls `student.loss`, a classifier `head.loss`, a LossEntry
# `losses[0]`. Nor can a StageClassifier, whose weights the neck reads.
_NO_UNITS = (BaseClassifier, ClsHead, LossEntry, StageClassifier, nn.ModuleList, nn.ModuleDict)


@STRATEGIES.register_module()
class StudentFSDPStrategy(FSDPStrategy):
    """Shard what a :class:`mldr_kd_mm.Distiller` trains; each process keeps the whole teacher.

    Unlike mmengine's FSDPStrategy it also runs on the CPU, over gloo, and resumes on torch 2.1 and
    later, which changed the order of arguments of ``optim_state_dict_to_load``.

    Args:
        model_wrapper: Config of the wrapper. Its ``auto_wrap_policy`` may be
            ``dict(type='wrap_student_blocks')``. Without a policy the model is a single unit.
        state_dict_cfg: ``'full'`` saves one checkpoint with the names and shapes of an unsharded
            run, ``'local'`` one for each process.
        **kwargs: Further arguments of mmengine's FSDPStrategy.
    """

    def __init__(
        self,
        *,
        model_wrapper: dict | None = None,
        state_dict_cfg: str | dict = 'full',
        **kwargs: Any,
    ) -> None:
        wrapper = dict(type='MMFullyShardedDataParallel') | (model_wrapper or {})
        on_cpu = not torch.cuda.is_available()
        if on_cpu:
            # mmengine's default is a GPU.
            wrapper.setdefault('device_id', 'cpu')
        super().__init__(model_wrapper=wrapper, state_dict_cfg=state_dict_cfg, **kwargs)
        if on_cpu:
            # torch gathers the optimizer's states one by one into the same memory. It only copies
            # them if they come from a GPU or this option is off.
            self.optim_state_dict_config.offload_to_cpu = False

    def load_optim_state_dict(self, state_dict: dict) -> None:
        self.optim_wrapper.load_state_dict(
            FullyShardedDataParallel.optim_state_dict_to_load(
                self.model, self.optim_wrapper.optimizer, state_dict
            )
        )


@FUNCTIONS.register_module()
def wrap_student_blocks(
    module: nn.Module, recurse: bool, nonwrapped_numel: int, min_num_params: int = 1_000_000
) -> bool:
    """Decide by FSDP's size-based policy, except for modules whose parts are called from outside.

    Args:
        module: The module to decide on.
        recurse: Whether the decision is to descend into the module, not to wrap it.
        nonwrapped_numel: Number of the module's parameters that are not in a unit yet.
        min_num_params: Number of parameters that makes a module a unit.

    Returns:
        Whether to descend into the module, or to make it a unit.
    """
    return size_based_auto_wrap_policy(
        module,
        recurse,
        nonwrapped_numel,
        min_num_params,
        exclude_wrap_modules={*_NO_UNITS},
    )

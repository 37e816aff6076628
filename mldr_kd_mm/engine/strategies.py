"""FSDP of mmengine's FlexibleRunner, made to fit a Distiller."""

from __future__ import annotations

from typing import Any

import torch
from mmengine._strategy import FSDPStrategy
from mmengine.registry import FUNCTIONS
from mmpretrain.models import BaseClassifier, ClsHead
from torch import nn
from torch.distributed.fsdp import FullyShardedDataParallel
from torch.distributed.fsdp.wrap import size_based_auto_wrap_policy

from mldr_kd_mm.models.distillers.loss_entry import Comparison
from mldr_kd_mm.registry import STRATEGIES

# FSDP gathers the weights of a unit when the unit is called, so what others reach into is none:
# Distiller calls `student.loss`, a classifier `head.loss`, a comparison `losses[0]`.
_REACHED_INTO = (BaseClassifier, ClsHead, Comparison, nn.ModuleList, nn.ModuleDict)


@STRATEGIES.register_module()
class StudentFSDPStrategy(FSDPStrategy):
    """Shards what a :class:`mldr_kd_mm.Distiller` trains; each process has a whole teacher.

    mmengine's FSDPStrategy, which also runs without a GPU, over gloo, and resumes with the order
    of arguments that torch 2.1 gave ``optim_state_dict_to_load``.

    Args:
        model_wrapper: Config of the wrapper. Its ``auto_wrap_policy`` may be
            ``dict(type='wrap_student_blocks')``; without one all is a single unit.
        state_dict_cfg: ``'full'``: one checkpoint with the names and shapes of an unsharded run;
            ``'local'``: one a process.
        **kwargs: See mmengine's.
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
            # mmengine would name a GPU.
            wrapper.setdefault('device_id', 'cpu')
        super().__init__(model_wrapper=wrapper, state_dict_cfg=state_dict_cfg, **kwargs)
        if on_cpu:
            # torch gathers one state of the optimizer after the other into the same memory, and
            # copies it only where it leaves a GPU or is told to stay.
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
    """FSDP's policy by size, but for modules whose parts are called from outside of them.

    Args:
        module: See ``size_based_auto_wrap_policy``.
        recurse: See there.
        nonwrapped_numel: See there.
        min_num_params: A module with so many parameters becomes a unit.

    Returns:
        Whether to descend into the module, or to make it a unit.
    """
    return size_based_auto_wrap_policy(
        module,
        recurse,
        nonwrapped_numel,
        min_num_params,
        exclude_wrap_modules={*_REACHED_INTO},
    )

"""Count the weights that a run loads."""

from __future__ import annotations

import os
from typing import Any

import torch
from mmengine.hooks import Hook
from mmengine.runner import BaseLoop, Runner
from torch import nn

from mldr_kd_mm.engine.resume_check import check_weights
from mldr_kd_mm.models.builder import keep_loaded_weights
from mldr_kd_mm.models.data_preprocessor import check_statistics
from mldr_kd_mm.models.distillers.weights import load_into
from mldr_kd_mm.models.weights import LoadReport, use_counted_loading
from mldr_kd_mm.registry import HOOKS, MODELS
from mldr_kd_mm.utils.checkpoint import find_state_dict
from mldr_kd_mm.utils.dist import unwrap_model


@HOOKS.register_module()
class LoadWeightsHook(Hook):
    """Requires that the weights of ``load_from`` arrive, in any format, and logs their counts.

    mmengine only warns about weights that are missing, and reads ``{'state_dict': ...}`` alone. A
    missing weight is an error here, except for

    - a head for another number of classes, if the run trains;
    - the neck and the losses of a Distiller.

    The same holds for ``init_cfg=dict(type='Pretrained', ...)``, which can list exceptions in
    ``allow_missing``. Weights that timm has loaded (``pretrained=True``) are kept when training
    begins. ``tools/train.py`` and ``tools/test.py`` add this hook to configs that lack it.
    """

    priority = 'VERY_HIGH'  # the EMAHook copies what has been loaded

    def before_run(self, runner: Runner) -> None:
        """Prepare for the initialisation of the model."""
        use_counted_loading()
        config = runner.cfg.get('model')
        if isinstance(config, dict):
            keep_loaded_weights(unwrap_model(runner.model), config)

    def after_load_checkpoint(self, runner: Runner, checkpoint: dict[str, Any]) -> None:
        """Load the weights, and leave them in ``checkpoint`` with the model's own names.

        Raises:
            ConfigError: A weight is missing.
        """
        is_sharded, path = not isinstance(runner, Runner), runner._load_from
        if is_sharded and (runner._resume or os.path.isdir(path)):
            return  # a strategy has its own form of the states
        if runner._resume:
            label = f'resume={str(path)!r}'
            wanted = unwrap_model(runner.model).state_dict()
            check_weights(find_state_dict(checkpoint, label).tensors, wanted, label)
            LoadReport(len(wanted), [], []).log(label)
            return
        trains = isinstance(runner._train_loop, BaseLoop)
        label = f'{"load_from" if trains else "checkpoint"}={path!r}'
        model = _build_again(runner) if is_sharded else unwrap_model(runner.model)
        load_into(model, checkpoint, label, trains).log(label)
        if not trains and not is_sharded:
            check_statistics(model.data_preprocessor, path, label)
        checkpoint['state_dict'] = model.state_dict()


def _build_again(runner: Any) -> nn.Module:
    """Build the model of a run whose own one is sharded."""
    with torch.random.fork_rng():
        return MODELS.build(runner.cfg.model)

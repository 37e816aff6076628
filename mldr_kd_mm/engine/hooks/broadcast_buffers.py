"""Synchronised buffers for validation."""

from __future__ import annotations

from mmengine import dist
from mmengine.hooks import Hook
from mmengine.runner import Runner

from mldr_kd_mm.registry import HOOKS


@HOOKS.register_module()
class BroadcastBuffersHook(Hook):
    """Broadcasts the main process's buffers before validation and testing.

    DistributedDataParallel keeps weights in sync. With ``broadcast_buffers=False``, mmengine's
    default, each rank has BatchNorm statistics of its own batches and would validate its share of
    the samples with them. With this hook the metrics belong to the model that the main process
    saves. mmengine's SyncBuffersHook averages over the ranks instead, which does not update
    EMAHook's copy of the buffers.
    """

    # Runs after EMAHook has swapped in its averages.
    priority = 'LOW'

    def before_val_epoch(self, runner: Runner) -> None:
        """Broadcast the buffers."""
        for buffer in runner.model.buffers():
            dist.broadcast(buffer)

    before_test_epoch = before_val_epoch

"""One model to validate, whatever the number of processes."""

from __future__ import annotations

from mmengine import dist
from mmengine.hooks import Hook
from mmengine.runner import Runner

from mldr_kd_mm.registry import HOOKS


@HOOKS.register_module()
class BroadcastBuffersHook(Hook):
    """Gives the buffers of the main process to all others before they validate.

    DistributedDataParallel keeps weights alike, but with ``broadcast_buffers=False``, as mmengine
    has it, each process has the running statistics of BatchNorm of its own batches, and validates
    its share of the samples with them. With this hook the metrics are those of the model that the
    main process saves. mmengine's SyncBuffersHook takes the mean of the processes instead, which
    EMAHook's copy of the buffers does not follow.
    """

    # After EMAHook has put its averages in place.
    priority = 'LOW'

    def before_val_epoch(self, runner: Runner) -> None:
        """Receive the buffers, or send them."""
        for buffer in runner.model.buffers():
            dist.broadcast(buffer)

    before_test_epoch = before_val_epoch

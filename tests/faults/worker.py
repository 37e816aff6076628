"""One process of a run that is hit by a fault: ``RANK PROCESSES FOLDER [FAULT]``.

It trains what FOLDER/config.json describes, and leaves its weights in FOLDER/weightsRANK.pt. FAULT
is ``SIGNAL@ITERATION``: the process sends itself that signal in the middle of that iteration.
"""

import json
import os
import sys
from pathlib import Path

import torch
import torch.distributed
from fault import Fault
from mmengine.config import Config
from mmengine.hooks import Hook
from mmengine.runner import Runner

import mldr_kd_mm  # noqa: F401  registers everything


class Batches(Hook):
    """Notes which samples were read, and as which batch of the epoch."""

    def __init__(self) -> None:
        self.seen = []

    def before_train_iter(self, runner, batch_idx, data_batch=None):
        samples = [sample.view.index for sample in data_batch['data_samples']]
        self.seen.append((runner.epoch, batch_idx, samples))


def main(rank: int, processes: int, folder: Path, fault: str = '') -> None:
    torch.set_num_threads(1)
    config = Config(json.loads((folder / 'config.json').read_text()))
    if processes > 1:
        torch.distributed.init_process_group(
            'gloo', init_method=f'file://{folder / "store"}', rank=rank, world_size=processes
        )
        config.launcher = 'pytorch'
        config.env_cfg = dict(dist_cfg=dict(backend='gloo'))
        config.model_wrapper_cfg = dict(
            type='MMDistributedDataParallel', broadcast_buffers=False, device_ids=None
        )
    runner = Runner.from_cfg(config)
    batches = Batches()
    runner.register_hook(batches)
    if fault:
        runner.register_hook(Fault(*fault.split('@')))
    try:
        runner.train()
        code = 0
    except SystemExit as stop:
        code = stop.code
    model = runner.model.module if processes > 1 else runner.model
    found = dict(
        weights=model.state_dict(),
        optimizer=runner.optim_wrapper.state_dict(),
        best=runner.message_hub.runtime_info.get('best_score'),
    )
    torch.save(found, folder / f'weights{rank}.pt')
    (folder / f'batches{rank}.json').write_text(json.dumps(batches.seen))
    sys.stdout.flush()
    # A thread of gloo's may abort a process that shuts down as usual.
    os._exit(code)


main(int(sys.argv[1]), int(sys.argv[2]), Path(sys.argv[3]), *sys.argv[4:])

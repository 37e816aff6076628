"""One of the two processes of test_queue.py: ``queue_worker.py RANK FOLDER``."""

import sys
from pathlib import Path

import torch
import torch.distributed
from helpers import leave_group
from torch.nn.parallel import DistributedDataParallel

from mldr_kd_mm.models.losses import QueueLoss

rank, folder = int(sys.argv[1]), Path(sys.argv[2])
torch.set_num_threads(1)
torch.distributed.init_process_group(
    'gloo', init_method=f'file://{folder / "store"}', rank=rank, world_size=2
)
given = torch.load(folder / 'given.pt')
loss = QueueLoss(**given['arguments']).double()
loss.load_state_dict(given['state'])
model = DistributedDataParallel(loss, broadcast_buffers=False)
values = []
for batch in given['batches'][rank]:
    loss.zero_grad()
    values.append(model(*batch))
    values[-1].backward()
found = dict(values=values, state=loss.state_dict(), gradient=loss.project.weight.grad)
torch.save(found, folder / f'found{rank}.pt')
leave_group()

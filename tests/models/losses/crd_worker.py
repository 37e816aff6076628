"""One of the two processes of test_crd.py: ``crd_worker.py RANK FOLDER``."""

import sys
from pathlib import Path

import torch
import torch.distributed
from helpers import leave_group

from mldr_kd_mm.models.losses import CRDLoss

rank, folder = int(sys.argv[1]), Path(sys.argv[2])
torch.set_num_threads(1)
torch.distributed.init_process_group(
    'gloo', init_method=f'file://{folder / "store"}', rank=rank, world_size=2
)
given = torch.load(folder / 'given.pt')
loss = CRDLoss(**given['arguments']).double()
loss.load_state_dict(given['state'])
values = [loss(*batch).item() for batch in given['batches'][rank]]
torch.save(dict(values=values, state=loss.state_dict()), folder / f'found{rank}.pt')
leave_group()

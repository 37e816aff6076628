"""One of the processes of test_dfra.py: ``gather_worker.py RANK WORLD_SIZE FOLDER``."""

import sys
from pathlib import Path

import torch
import torch.distributed
from helpers import leave_group
from torch import nn
from torch.nn.parallel import DistributedDataParallel

from mldr_kd_mm.models.losses import DFRALoss, common

rank, world_size, folder = int(sys.argv[1]), int(sys.argv[2]), Path(sys.argv[3])
torch.set_num_threads(1)
torch.distributed.init_process_group(
    'gloo', init_method=f'file://{folder / "store"}', rank=rank, world_size=world_size
)
found = {}
for name, case in torch.load(folder / 'cases.pt').items():
    weight = case['weight']
    student = nn.Linear(*weight.shape[::-1], bias=False, dtype=weight.dtype)
    student.load_state_dict(dict(weight=weight))
    loss = DFRALoss(gather=True, **case['arguments'])
    compare = torch.compile(loss, backend='eager') if case.get('compile') else loss
    inputs, teacher = case['batches'][rank]
    model = DistributedDataParallel(student)
    logits = model(inputs).unflatten(-1, case['heads']).movedim(0, -2)
    logits = logits.to(case.get('logits', logits.dtype))
    value = compare(logits, teacher)
    value.sum().backward()
    alone = loss.eval()(logits, teacher)
    found[name] = dict(value=value.detach(), gradient=student.weight.grad, alone=alone.detach())
# With another backend the sizes are exchanged by a group of their own, over the host.
common.dist.get_backend = lambda group=None: 'nccl'
assert common._gather_sizes(rank + 3) == [3 + r for r in range(world_size)]
torch.save(found, folder / f'found{rank}.pt')
leave_group()

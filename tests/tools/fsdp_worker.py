"""One process of test_strategies.py: compare a step with FSDP over gloo to one without."""

import os
import sys

import torch
from helpers import batch, leave_group, mldr, resnet, timm_resnet, vit
from mmengine.registry import MODEL_WRAPPERS, init_default_scope
from torch import distributed
from torch.distributed.fsdp import FullyShardedDataParallel, StateDictType

from mldr_kd_mm.registry import MODELS

STUDENTS = dict(resnet=resnet, vit=vit, timm_resnet=timm_resnet)


def build(student):
    """Build a Distiller, the same in all processes."""
    torch.manual_seed(0)
    model = MODELS.build(mldr(teacher=vit(depth=2), student=student))
    model.init_weights()
    return model


def step(model, data):
    """Take an optimizer step on the process's own batch; return the losses."""
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    torch.manual_seed(distributed.get_rank())
    losses = model(**data, mode='loss')
    sum(value for name, value in losses.items() if 'loss' in name).backward()
    optimizer.step()
    return {name: value.detach() for name, value in losses.items()}


def main(kind, min_num_params):
    """Compare the losses and the trained weights of both."""
    student = STUDENTS[kind]()
    alone = build(student)
    sharded = MODEL_WRAPPERS.build(
        dict(
            type='MMFullyShardedDataParallel',
            module=build(student),
            device_id='cpu',
            auto_wrap_policy=dict(type='wrap_student_blocks', min_num_params=min_num_params),
        )
    )
    units = FullyShardedDataParallel.fsdp_modules(sharded)
    data = batch(seed=distributed.get_rank())
    expected = step(alone, alone.data_preprocessor(dict(data), True))
    actual = step(sharded, sharded.module.data_preprocessor(dict(data), True))
    assert actual.keys() == expected.keys()
    for name in expected:
        torch.testing.assert_close(actual[name], expected[name], msg=name)

    # Both must have stepped by the mean of the processes' gradients.
    initial = dict(build(student).named_parameters())
    with FullyShardedDataParallel.state_dict_type(sharded, StateDictType.FULL_STATE_DICT):
        learned = sharded.state_dict()
    assert learned.keys() == alone.state_dict().keys()
    for name, parameter in alone.named_parameters():
        moved = (parameter - initial[name]).detach()
        distributed.all_reduce(moved)
        moved /= distributed.get_world_size()
        torch.testing.assert_close(
            learned[name] - initial[name], moved, rtol=1e-3, atol=1e-6, msg=name
        )
    assert len(units) > 10
    held = sum(parameter.numel() for parameter in sharded.parameters())
    assert held < 0.75 * sum(parameter.numel() for parameter in alone.parameters())


if __name__ == '__main__':
    torch.set_num_threads(1)
    init_default_scope('mldr_kd_mm')
    store, student, min_num_params = sys.argv[1:]
    distributed.init_process_group(
        'gloo', init_method=f'file://{store}', rank=int(os.environ['LOCAL_RANK']), world_size=2
    )
    main(student, int(min_num_params))
    leave_group()

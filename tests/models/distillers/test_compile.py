"""The student, the neck and the losses of a Distiller through torch.compile."""

import copy

import pytest
import torch
from helpers import batch, mldr, resnet, vit
from helpers import train as run
from torch.testing import assert_close

from mldr_kd_mm import ConfigError
from mldr_kd_mm.registry import MODELS

IN_ONE_GRAPH = dict(backend='eager', fullgraph=True)


def built(**kwargs):
    torch.manual_seed(0)
    return MODELS.build(mldr(**kwargs)).train()


def train(model, steps):
    """Return the losses of each step."""
    optimizer, logged = torch.optim.SGD(model.parameters(), lr=0.1), []
    for seed in range(steps):
        losses = model(**model.data_preprocessor(batch(seed=seed), True), mode='loss')
        optimizer.zero_grad()
        sum(value for name, value in losses.items() if 'loss' in name).backward()
        optimizer.step()
        logged.append({name: value.detach() for name, value in losses.items()})
    return logged


@pytest.mark.parametrize(
    'student', [pytest.param(resnet, marks=pytest.mark.slow), vit], ids=['CNN', 'Transformer']
)
def test_one_graph_with_the_taps_and_one_of_the_losses(student):
    """Hooks of the taps are attached anew in each step; the graphs stay right."""
    compiled = dict(student_compile=IN_ONE_GRAPH, losses_compile=IN_ONE_GRAPH)
    model = built(student=student(), **compiled)
    assert_close(train(model, 3), train(built(student=student()), 3))
    assert {*model.state_dict()} == {*built(student=student()).state_dict()}
    # Copies, such as EMA's, compile for themselves.
    assert copy.deepcopy(model)._compiled is None


@pytest.mark.skipif(torch.cuda.is_available(), reason='needs a machine without a GPU')
@pytest.mark.parametrize(
    ('field', 'options'),
    [
        ('teacher_compile', dict(mode='reduce-overhead')),
        ('student_compile', dict(mode='max-autotune')),
        ('losses_compile', dict(backend='cudagraphs')),
    ],
)
def test_cuda_graphs_need_a_gpu(field, options):
    with pytest.raises(ConfigError) as caught:
        train(built(**{field: options}), 1)
    assert str(caught.value) == (
        f'{field}={options!r}: must be True or False without a GPU, as it uses CUDA graphs'
    )


@pytest.mark.parametrize('field', ['student_compile', 'losses_compile'])
def test_is_a_bool_or_a_dict(field):
    with pytest.raises(ConfigError, match=f'^{field}=1: must be True, False or a dict$'):
        built(**{field: 1})


@pytest.mark.slow
def test_a_resumed_run_is_exact(tmp_path, monkeypatch):
    # With torch's default of weights_only=True the original mmengine cannot read its checkpoints.
    monkeypatch.setenv('TORCH_FORCE_NO_WEIGHTS_ONLY_LOAD', '1')
    compiled = dict(backend='aot_eager')
    fields = ('teacher_compile', 'student_compile', 'losses_compile')
    model = mldr(**dict.fromkeys(fields, compiled))
    whole = run(model, tmp_path / 'whole', max_epochs=2)
    run(model, tmp_path / 'first', max_epochs=1)
    checkpoint = str(tmp_path / 'first' / 'epoch_1.pth')
    resumed = run(model, tmp_path / 'rest', max_epochs=2, resume=True, load_from=checkpoint)
    expected, found = whole.model.state_dict(), resumed.model.state_dict()
    assert {*expected} == {*found}
    assert all(torch.equal(value, found[name]) for name, value in expected.items())

"""The pretended GPU sees each fault that is planted here, and changes nothing for others."""

import copy

import pytest
import torch
import torch.nn.functional as F
from pretended import PretendedGPU
from torch import nn

GPU = 'cuda'


@pytest.fixture
def gpu():
    with PretendedGPU() as gpu:
        yield gpu


def network():
    layers = nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.Flatten(), nn.Linear(4 * 36, 5)
    return nn.Sequential(*layers)


class Double(torch.autograd.Function):
    """Twice the input; what its backward pass does is the fault."""

    @staticmethod
    def forward(ctx, x, fault):
        ctx.fault = fault
        return x * 2

    @staticmethod
    def backward(ctx, gradient):
        return ctx.fault(gradient), None


def backward(fault):
    Double.apply(torch.randn(3, device=GPU, requires_grad=True), fault).sum().backward()


def gradients():
    """Return two parameters of the GPU with gradients."""
    parameters = [nn.Parameter(torch.ones(n, device=GPU)) for n in (2, 3)]
    sum(parameter.sum() for parameter in parameters).backward()
    return parameters


MIXED = {
    'mm': lambda: torch.randn(2, 2, device=GPU) @ torch.randn(2, 2),
    'cat': lambda: torch.cat([torch.randn(2, device=GPU), torch.randn(2)]),
    'stack': lambda: torch.stack([torch.tensor(1.0), torch.ones((), device=GPU)]),
    'add': lambda: torch.randn(2) + torch.randn(2, device=GPU),
    'in place': lambda: torch.zeros(()).add_(torch.ones((), device=GPU)),
    'module': lambda: network()(torch.randn(2, 3, 8, 8, device=GPU)),
    'buffer': lambda: nn.BatchNorm1d(2)(torch.randn(4, 2, device=GPU)),
    'cross entropy': lambda: F.cross_entropy(torch.randn(2, 3, device=GPU), torch.tensor([0, 1])),
    'made in a backward pass': lambda: backward(lambda gradient: gradient * torch.ones(3)),
    'foreach': lambda: torch._foreach_add([torch.ones(2, device=GPU)], [torch.ones(2)]),
}
WAITS = {
    'item': lambda: torch.randn(2, device=GPU).sum().item(),
    'bool': lambda: bool((torch.randn(2, device=GPU) > 0).all()),
    'int': lambda: int(torch.zeros((), device=GPU)),
    'if': lambda: 1 if torch.zeros((), device=GPU) else 2,
    'format': lambda: f'{torch.zeros((), device=GPU):.3f}',
    'tolist': lambda: torch.randn(3, device=GPU).tolist(),
    'cpu': lambda: torch.randn(3, device=GPU).cpu(),
    'to the host': lambda: torch.randn(3, device=GPU).to('cpu'),
    'to the GPU': lambda: torch.randn(3).to(GPU),
    'blocking, pinned': lambda: torch.randn(3).pin_memory().to(GPU),
    'non-blocking, not pinned': lambda: torch.randn(3).to(GPU, non_blocking=True),
    'into memory that is not pinned': lambda: torch.empty(3).copy_(
        torch.ones(3, device=GPU), non_blocking=True
    ),
    'made from a list': lambda: torch.tensor([1], device=GPU),
    'as_tensor': lambda: torch.as_tensor(torch.ones(2), device=GPU),
    'mask': lambda: torch.randn(2, device=GPU)[torch.ones(2, dtype=torch.bool, device=GPU)],
    'indices of the CPU': lambda: torch.randn(3, device=GPU)[torch.tensor([1, 0])],
    'nonzero': lambda: torch.randn(3, device=GPU).nonzero(),
    'unique': lambda: torch.randn(3, device=GPU).unique(),
    'equal': lambda: torch.equal(torch.ones(2, device=GPU), torch.ones(2, device=GPU)),
    'allclose': lambda: torch.allclose(torch.ones(2, device=GPU), torch.ones(2, device=GPU)),
    'repeat_interleave': lambda: torch.ones(2, device=GPU).repeat_interleave(
        torch.ones(2, dtype=torch.long, device=GPU)
    ),
    'in a backward pass': lambda: backward(lambda gradient: gradient * gradient.sum().item()),
    'in a custom operation': lambda: double(torch.randn(3, device=GPU), waits=True),
    'synchronize': lambda: torch.cuda.synchronize(),
    'gradient norm with error': lambda: nn.utils.clip_grad_norm_(
        gradients(), 1.0, error_if_nonfinite=True
    ),
}


@pytest.mark.parametrize('fault', MIXED)
def test_mixed_devices_raise(gpu, fault):
    with pytest.raises(RuntimeError, match='tensors must be on the same device'):
        MIXED[fault]()


@pytest.mark.parametrize('fault', WAITS)
def test_waits_are_recorded(gpu, fault):
    assert not gpu.step.waits
    WAITS[fault]()
    assert gpu.step.waits
    assert all('gpu/test_pretended.py:' in wait for wait in gpu.step.waits), gpu.step.waits


def test_numpy_raises(gpu):
    with pytest.raises(TypeError, match="can't convert cuda:0"):
        torch.ones(2, device=GPU).numpy()


def test_event(gpu):
    event = torch.cuda.Event()
    event.record()
    assert not event.query()
    gpu.start_step()
    event.synchronize()
    assert not gpu.step.waits and event.query()
    event.record()
    event.synchronize()
    assert gpu.step.waits == {'event of this step at gpu/test_pretended.py:test_event': 1}


def test_a_sound_program(gpu):
    """Neither error nor wait, and what is computed on the GPU is on the GPU."""
    model = network().to(GPU)
    assert all(p.is_cuda and not p.is_cpu for p in model.parameters())
    assert model[1].running_mean.device == torch.device('cuda', 0)
    other = copy.deepcopy(model)
    assert other[0].weight.is_cuda
    host = torch.ones(2, 3, 8, 8).pin_memory()
    gpu.start_step()
    images = host.to(GPU, non_blocking=True)
    logits = model(images)
    assert logits.is_cuda
    labels = torch.zeros(2, dtype=torch.long, device=GPU)
    F.cross_entropy(logits, labels).backward()
    assert model[0].weight.grad.is_cuda
    torch.where(logits > 0, logits, 0.0)
    assert (logits + torch.tensor(2.0)).is_cuda
    assert F.one_hot(labels, 4).is_cuda
    logits.detach()[logits > 0] = 0
    on_host = logits.detach().to('cpu', non_blocking=True)
    assert not on_host.is_cuda and on_host.is_pinned()
    torch.empty(2, 5, pin_memory=True).copy_(logits.detach(), non_blocking=True)
    assert not gpu.step.waits


@pytest.mark.parametrize('kind', ['SGD', 'AdamW'])
@pytest.mark.parametrize('form', [dict(), dict(fused=True), dict(foreach=False)], ids=str)
def test_optimizers_do_not_wait(gpu, kind, form):
    parameters = gradients()
    optimizer = getattr(torch.optim, kind)(parameters, lr=0.1, **form)
    gpu.start_step()
    optimizer.step()
    assert not gpu.step.waits
    assert all(p.is_cuda and (p < 1).all() for p in parameters)


def test_values_are_those_of_the_cpu():
    """Training on the pretended GPU gives the weights that the CPU gives."""
    weights = []
    for on_gpu in (False, True):
        torch.manual_seed(0)
        model, images = network(), torch.randn(4, 3, 8, 8)

        def train(model=model, images=images):
            optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
            for _ in range(3):
                optimizer.zero_grad()
                model(images.to(next(model.parameters()).device)).square().mean().backward()
                optimizer.step()
            return model.state_dict()

        if on_gpu:
            with PretendedGPU():
                model.to(GPU)
                weights.append(train())
        else:
            weights.append(train())
    for (name, on_cpu), on_gpu in zip(weights[0].items(), weights[1].values(), strict=True):
        assert torch.equal(on_cpu, on_gpu), name


def test_launches_of_parts(gpu):
    """A view is no launch; a backward pass counts for the part that ran the forward pass."""

    def count(parts):
        with PretendedGPU(parts) as gpu:
            x = torch.ones(4, device=GPU, requires_grad=True)
            weight = torch.ones(2, 4, device=GPU)
            gpu.start_step()
            F.linear(x.exp().view(1, 4), weight).sum().backward()
        return gpu.step

    plain = count({})
    # exp, mm, sum; ones, expand, mm, mul.
    assert plain.operations == dict(exp=1, mm=2, sum=1, ones_like=1, mul=1)
    assert plain.launches == dict(rest=6)
    named = count(dict(here=['gpu/test_pretended']))
    assert named.launches == dict(here=6)
    # exp and sum: 2 x 16 and 8 + 4 bytes; their gradients read more.
    assert 44 < plain.moved < 400


def test_nothing_is_left_behind():
    before = {name: getattr(torch.cuda, name) for name in dir(torch.cuda)}
    with PretendedGPU():
        kept = torch.ones(2, device=GPU)
        assert kept.is_cuda and torch.cuda.is_available()
    assert {name: getattr(torch.cuda, name) for name in dir(torch.cuda)} == before
    assert kept.device.type == 'cpu' and not kept.is_cuda and kept.is_cpu
    assert {'device', 'is_cuda', 'is_cpu'}.isdisjoint(vars(torch.Tensor))
    assert kept.tolist() == [1, 1] and torch.Generator is torch._C.Generator


@torch.library.custom_op('pretended_tests::double', mutates_args=())
def double(x: torch.Tensor, waits: bool) -> torch.Tensor:
    if waits:
        x.sum().item()
    return x * 2 if x.is_cuda else x * 2 + 0


def test_custom_operation(gpu):
    """A custom operation sees the GPU, and its launches count."""
    x = torch.ones(3, device=GPU)
    gpu.start_step()
    out = double(x, waits=False)
    assert out.is_cuda and out.tolist() == [2, 2, 2]
    assert gpu.step.operations == dict(mul=1)


def test_triton_kernel(gpu):
    """A kernel is counted and not run, and must not get a tensor of the CPU."""
    triton = pytest.importorskip('triton')

    @triton.jit
    def copy_all(source, target):
        raise AssertionError

    source, target = torch.ones(4, device=GPU), torch.empty(4, device=GPU)
    gpu.start_step()
    copy_all[(1,)](source, target)
    assert gpu.step.operations == dict(copy_all=1) and gpu.step.moved == 32
    assert target.tolist() == [0, 0, 0, 0]
    with pytest.raises(ValueError, match='copy_all: a pointer is of the CPU'):
        copy_all[(1,)](torch.ones(4), target)

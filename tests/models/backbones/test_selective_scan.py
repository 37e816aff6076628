"""The selective scan against its definition, and the memory that its backward pass needs."""

from __future__ import annotations

import sys
from types import ModuleType, SimpleNamespace

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.testing import assert_close

from mldr_kd_mm.models.backbones import VisionMamba
from mldr_kd_mm.models.backbones import selective_scan as scans
from mldr_kd_mm.models.backbones.selective_scan import mamba_kernel, selective_scan

NAMES = ('u', 'delta', 'A', 'B', 'C', 'D', 'z', 'delta_bias')
KERNEL = 'selective_scan_cuda'


def arguments(batch, width, length, states, seed=0, dtype=torch.float64, device='cpu'):
    generator = torch.Generator().manual_seed(seed)

    def random(*shape):
        return torch.randn(*shape, generator=generator, dtype=dtype)

    sequence, weights = (batch, width, length), (batch, states, length)
    values = (
        random(*sequence),
        random(*sequence),
        -random(width, states).exp(),
        random(*weights),
        random(*weights),
        random(width),
        random(*sequence),
        random(width),
    )
    return [value.to(device).requires_grad_() for value in values]


def reference(u, delta, A, B, C, D, z, delta_bias):
    """Compute the scan by its definition, step by step."""
    delta = F.softplus(delta + delta_bias[:, None])
    state, outputs = u.new_zeros(len(u), *A.shape), []
    for t in range(u.shape[2]):
        step, x = delta[:, :, t, None], u[:, :, t, None]
        state = torch.exp(step * A) * state + step * x * B[:, None, :, t]
        outputs.append((state * C[:, None, :, t]).sum(-1) + D * u[:, :, t])
    return torch.stack(outputs, 2) * F.silu(z)


def value_and_gradients(scan, inputs):
    y = scan(*inputs)
    weights = torch.linspace(-1, 1, y.numel(), dtype=y.dtype, device=y.device).view_as(y)
    gradients = torch.autograd.grad((y * weights).sum(), inputs)
    return {'y': y.detach(), **dict(zip(NAMES, gradients, strict=True))}


def assert_same(actual, expected, rtol):
    assert actual.keys() == expected.keys()
    for name, value in expected.items():
        # The error of an entry near zero is relative to the larger entries.
        atol = rtol * value.abs().max().item()
        assert_close(
            actual[name], value, rtol=rtol, atol=atol, msg=lambda m, name=name: f'{name}: {m}'
        )


def saved_bytes(scan, inputs):
    """Return the bytes that a forward pass keeps for its backward pass; storages count once."""
    storages = {}

    def pack(tensor):
        storage = tensor.untyped_storage()
        storages[storage.data_ptr()] = storage.nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        y = scan(*inputs)  # kept alive, so that no address is reused
    assert y.requires_grad
    return sum(storages.values())


class TestDefinition:
    @settings(max_examples=40, deadline=None)
    @given(
        st.tuples(st.integers(1, 3), st.integers(1, 5), st.integers(1, 20), st.integers(1, 4)),
        st.integers(0, 99),
    )
    def test_values_and_gradients(self, shape, seed):
        inputs = arguments(*shape, seed=seed)
        assert_same(
            value_and_gradients(selective_scan, inputs),
            value_and_gradients(reference, inputs),
            rtol=1e-9,
        )

    def test_in_float32(self):
        inputs = arguments(2, 8, 50, 16, dtype=torch.float32)
        actual = value_and_gradients(selective_scan, inputs)
        assert {value.dtype for value in actual.values()} == {torch.float32}
        doubles = [value.detach().double().requires_grad_() for value in inputs]
        expected = value_and_gradients(reference, doubles)
        assert_same({k: v.double() for k, v in actual.items()}, expected, rtol=1e-5)

    @pytest.mark.parametrize('shape', [(2, 3, 5, 2), (1, 2, 1, 1)], ids=['many', 'one'])
    def test_gradcheck(self, shape):
        assert torch.autograd.gradcheck(selective_scan, arguments(*shape))

    def test_takes_views(self):
        """A mixer passes transposed and flipped tensors, and halves of one tensor."""
        u, delta, A, B, C, D, z, bias = arguments(2, 4, 7, 3)
        halves = torch.cat([u, z], 1).mT.contiguous()
        x, gate = halves.mT.flip(-1).chunk(2, 1)
        views = x, delta.mT.contiguous().mT, A, B.mT.contiguous().mT, C, D, gate, bias
        assert_close(
            selective_scan(*views),
            reference(u.flip(-1), delta, A, B, C, D, z.flip(-1), bias),
            rtol=1e-12,
            atol=1e-12,
        )

    def test_leaves_its_arguments_alone(self):
        inputs = arguments(1, 2, 1, 1)
        before = [value.detach().clone() for value in inputs]
        selective_scan(*inputs).sum().backward()
        assert_close([value.detach() for value in inputs], before, rtol=0, atol=0)

    def test_large_steps_overflow_nothing(self):
        inputs = arguments(1, 4, 12, 4, dtype=torch.float32)
        with torch.no_grad():
            inputs[1].mul_(1000)
        results = value_and_gradients(selective_scan, inputs)
        assert all(value.isfinite().all() for value in results.values())


class Scan(torch.nn.Module):
    def forward(self, *inputs):
        return selective_scan(*inputs)


class TestExport:
    @pytest.mark.parametrize('length', [1, 2, 7, 16])
    def test_values(self, length):
        inputs = tuple(arguments(2, 3, length, 4))
        graph = torch.export.export(Scan(), inputs, strict=False)
        assert_close(graph.module()(*inputs), reference(*inputs), rtol=1e-12, atol=1e-12)

    def test_graph_does_not_grow_with_the_length(self):
        nodes = [
            len(torch.export.export(Scan(), tuple(inputs), strict=False).graph.nodes)
            for inputs in (arguments(1, 2, 16, 2), arguments(1, 2, 256, 2))
        ]
        assert nodes[1] < 2 * nodes[0]

    def test_large_steps_overflow_nothing(self):
        inputs = arguments(1, 4, 12, 4, dtype=torch.float32)
        with torch.no_grad():
            inputs[1].mul_(1000)
        graph = torch.export.export(Scan(), tuple(inputs), strict=False).module()
        assert_close(graph(*inputs), selective_scan(*inputs), rtol=1e-5, atol=1e-5)


class TestPrecision:
    def test_autocast_changes_nothing(self):
        inputs = arguments(2, 4, 9, 3, dtype=torch.float32)
        expected = value_and_gradients(selective_scan, inputs)
        with torch.autocast('cpu', torch.bfloat16):
            actual = value_and_gradients(selective_scan, inputs)
        assert_same(actual, expected, rtol=0)

    def test_bfloat16_is_computed_in_float32(self):
        inputs = arguments(2, 4, 9, 3, dtype=torch.float32)
        halved = [value.detach().bfloat16().requires_grad_() for value in inputs]
        exact = [value.detach().float().requires_grad_() for value in halved]
        actual = value_and_gradients(selective_scan, halved)
        assert {value.dtype for value in actual.values()} == {torch.bfloat16}
        assert_close(actual['y'], selective_scan(*exact).bfloat16(), rtol=0, atol=0)
        expected = value_and_gradients(reference, exact)
        assert_same({k: v.float() for k, v in actual.items()}, expected, rtol=2e-2)

    def test_each_gradient_has_the_dtype_of_its_argument(self):
        inputs = arguments(2, 4, 9, 3, dtype=torch.float32)
        mixed = [
            value.detach().to(torch.bfloat16 if name in 'u delta B C z'.split() else value.dtype)
            for name, value in zip(NAMES, inputs, strict=True)
        ]
        for value in mixed:
            value.requires_grad_()
        selective_scan(*mixed).sum().backward()
        assert [value.grad.dtype for value in mixed] == [value.dtype for value in mixed]


class TestBackward:
    def test_keeps_a_sixth_of_what_the_loop_keeps(self):
        inputs = arguments(1, 64, 197, 16, dtype=torch.float32)
        kept = saved_bytes(selective_scan, inputs)
        assert kept >= sum(value.nbytes for value in inputs)  # saved_bytes works
        assert 6 * kept <= saved_bytes(reference, inputs)

    @pytest.mark.parametrize('loss', [torch.sum, lambda y: y.square().sum()], ids=['sum', 'square'])
    def test_only_once(self, loss):
        inputs = arguments(1, 2, 3, 2)
        with pytest.raises(RuntimeError, match='^selective_scan has no second derivative'):
            torch.autograd.grad(loss(selective_scan(*inputs)), inputs, create_graph=True)

    @pytest.mark.parametrize('index', range(len(NAMES)), ids=NAMES)
    def test_of_one_argument_alone(self, index):
        inputs = [value.detach() for value in arguments(2, 3, 6, 2)]
        inputs[index].requires_grad_()
        gradients = [
            torch.autograd.grad(scan(*inputs).square().sum(), inputs[index])
            for scan in (selective_scan, reference)
        ]
        assert_close(*gradients, rtol=1e-9, atol=1e-12)

    def test_none_without_gradients(self):
        inputs = arguments(1, 2, 3, 2)
        expected = selective_scan(*inputs).detach()
        for context in (torch.no_grad, torch.inference_mode):
            with context():
                y = selective_scan(*inputs)
            assert not y.requires_grad
            assert_close(y, expected, rtol=0, atol=0)


class TestTriton:
    """Without a GPU the kernels run in Triton's interpreter (conftest.py)."""

    DEVICE = 'cuda' if torch.cuda.is_available() else 'cpu'

    @pytest.fixture(scope='class')
    def kernels(self):
        with pytest.MonkeyPatch.context() as patch:
            kernels = pytest.importorskip(
                'mldr_kd_mm.models.backbones.selective_scan_triton', reason='needs triton'
            )
            patch.setattr(kernels, 'CHANNELS', 4)
            yield kernels

    @pytest.mark.usefixtures('kernels')
    @pytest.mark.parametrize('shape', [(1, 1, 1, 1), (2, 5, 10, 3), (1, 4, 9, 16)], ids=str)
    def test_values_and_gradients(self, shape):
        inputs = arguments(*shape, device=self.DEVICE)
        actual = value_and_gradients(scans._triton_scan, inputs)
        assert_same(actual, value_and_gradients(reference, inputs), rtol=1e-9)

    @pytest.mark.usefixtures('kernels')
    @pytest.mark.parametrize('shift', [0.0, -9.0, 300.0], ids=['usual', 'small', 'large'])
    def test_steps_of_any_size_in_float32(self, shift):
        inputs = arguments(2, 3, 6, 2, dtype=torch.float32, device=self.DEVICE)
        inputs[1] = (inputs[1].detach() + shift).requires_grad_()
        actual = value_and_gradients(scans._triton_scan, inputs)
        doubles = [value.detach().double().requires_grad_() for value in inputs]
        expected = value_and_gradients(reference, doubles)
        assert_same({k: v.double() for k, v in actual.items()}, expected, rtol=2e-6)

    @pytest.mark.usefixtures('kernels')
    def test_takes_views_in_half_precision(self):
        u, delta, A, B, C, D, z, bias = arguments(
            2, 4, 7, 3, dtype=torch.float32, device=self.DEVICE
        )
        x, gate = torch.cat([u, z], 1).bfloat16().mT.contiguous().mT.flip(-1).chunk(2, 1)
        sequences = (value.bfloat16().mT.contiguous().mT for value in (delta, B, C))
        delta, B, C = sequences
        views = [value.detach() for value in (x, delta, A, B, C, D, gate, bias)]
        results = []
        for scan, convert in (
            (scans._triton_scan, lambda value: value),
            (reference, lambda value: value.double()),
        ):
            inputs = [convert(value).requires_grad_() for value in views]
            results.append(value_and_gradients(scan, inputs))
        half = {'y', 'u', 'delta', 'B', 'C', 'z'}
        for name, value in results[0].items():
            assert value.dtype == (torch.bfloat16 if name in half else torch.float32)
        assert_same({k: v.double() for k, v in results[0].items()}, results[1], rtol=1e-2)

    def test_passes_pytorchs_own_checks(self, kernels):
        torch.library.opcheck(kernels.triton_scan, tuple(arguments(1, 2, 3, 2, device=self.DEVICE)))

    def test_compiles_into_one_graph(self, kernels):
        compiled = torch.compile(scans._triton_scan, backend='aot_eager', fullgraph=True)
        inputs = arguments(1, 2, 3, 2, device=self.DEVICE)
        expected = value_and_gradients(scans._triton_scan, inputs)
        assert_same(value_and_gradients(compiled, inputs), expected, rtol=0)

    @pytest.mark.usefixtures('kernels')
    def test_has_no_second_derivative(self):
        inputs = arguments(1, 2, 3, 2, device=self.DEVICE)
        with pytest.raises(RuntimeError, match='^selective_scan has no second derivative'):
            value = scans._triton_scan(*inputs).sum()
            torch.autograd.grad(value, inputs, create_graph=True)

    def test_runs_on_a_gpu_without_mamba_ssm(self, monkeypatch):
        monkeypatch.setattr(scans, 'triton_runs', lambda device_type: True)
        monkeypatch.setattr(scans, '_has_mamba_kernel', lambda: False)
        monkeypatch.setattr(scans, '_triton_scan', lambda *inputs: 'Triton')
        on_gpu = [SimpleNamespace(is_cuda=True, dtype=torch.float32)] + [None] * 7
        assert selective_scan(*on_gpu) == 'Triton'


class TestKernel:
    @pytest.mark.parametrize('runs', [True, False])
    def test_one_that_is_not_installed(self, runs, monkeypatch, recwarn):
        monkeypatch.setattr(scans, 'triton_runs', lambda device_type: runs)
        monkeypatch.setitem(sys.modules, KERNEL, None)
        assert mamba_kernel.__wrapped__() is None
        messages = [str(warning.message) for warning in recwarn]
        assert len(messages) == (not runs)
        assert all('runs in a loop over time, which is slow; ' in text for text in messages)

    @pytest.mark.parametrize('error', ['ImportError', 'OSError', 'RuntimeError'])
    def test_a_broken_one_is_told_of_and_not_used(self, error, tmp_path, monkeypatch):
        monkeypatch.setattr(scans, 'triton_runs', lambda device_type: True)
        tmp_path.joinpath(f'{KERNEL}.py').write_text(f"raise {error}('undefined symbol')")
        monkeypatch.delitem(sys.modules, KERNEL, raising=False)
        monkeypatch.syspath_prepend(tmp_path)
        with pytest.warns(UserWarning, match=r'^mamba-ssm does not import \(undefined symbol\); '):
            assert mamba_kernel.__wrapped__() is None

    def test_one_that_imports_is_used(self, monkeypatch):
        path = 'mamba_ssm.ops.selective_scan_interface'
        for name in (KERNEL, 'mamba_ssm', 'mamba_ssm.ops', path):
            monkeypatch.setitem(sys.modules, name, ModuleType(name))
        sys.modules[path].selective_scan_fn = selective_scan
        assert mamba_kernel.__wrapped__() is selective_scan

    def test_is_not_imported_on_the_cpu(self, monkeypatch):
        # On a CPU the import would only fail with a warning.
        monkeypatch.setattr(
            'mldr_kd_mm.models.backbones.selective_scan.mamba_kernel', lambda: pytest.fail('import')
        )
        model = VisionMamba(img_size=16, patch_size=8, depth=1)
        model(torch.zeros(1, 3, 16, 16)).sum().backward()
        if not torch.cuda.is_available():
            assert not {'mamba_ssm', KERNEL} & set(sys.modules)

    @pytest.mark.parametrize('dtype', [torch.float32, torch.bfloat16], ids=str)
    def test_agrees_with_the_loop(self, dtype):
        if not torch.cuda.is_available():
            pytest.skip('needs a GPU: mamba-ssm has no kernel for the CPU')
        if mamba_kernel() is None:
            pytest.skip("needs mamba-ssm: pip install --no-build-isolation '.[mamba]'")
        sequences = {'u', 'delta', 'B', 'C', 'z'}
        on_gpu = [
            value.detach().to(dtype if name in sequences else torch.float32).requires_grad_()
            for name, value in zip(
                NAMES, arguments(2, 64, 197, 16, dtype=torch.float32, device='cuda'), strict=True
            )
        ]
        on_cpu = [value.detach().cpu().requires_grad_() for value in on_gpu]
        actual = value_and_gradients(selective_scan, on_gpu)
        expected = value_and_gradients(selective_scan, on_cpu)
        assert_same(
            {name: value.cpu().float() for name, value in actual.items()},
            {name: value.float() for name, value in expected.items()},
            rtol=1e-3 if dtype == torch.float32 else 3e-2,
        )

"""A GPU that only pretends to be one, for machines without a GPU.

Inside ``with PretendedGPU() as gpu`` a tensor that is moved to ``cuda`` stays a CPU tensor, whose
storage is marked. The real code therefore runs with the real values, and torch behaves like this:

- ``device``, ``is_cuda`` and ``is_cpu`` of a marked tensor, and of all that is computed from it,
  say ``cuda:0``. An operation that mixes the devices raises, as on a GPU.
- Every place where the host would wait for the GPU is recorded: reading a value, an index or size
  that depends on values, and copies that block or whose host memory is not pinned.
- Kernel launches and the bytes that they read and write are counted.
- A Triton kernel is counted and not run. What it would write stays 0, like all new memory.

What it does not show: time, the order of streams, the numerics of a GPU, and kernels of its own. An
operation counts as one launch, although some take more (``cudnn``'s backward pass of a convolution,
``foreach`` operations on many tensors). Under autocast the operations follow the CPU's lists.

All patches of torch are undone when the ``with`` block ends.
"""

from __future__ import annotations

import bisect
import importlib.util
import sys
from collections import Counter, deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from unittest import mock

# Modules that torch imports when it needs them; they must not see a GPU while they are imported.
import mmengine.device.utils
import torch
import torch._dynamo
import torch.distributed.fsdp  # noqa: F401
import torch.utils._foreach_utils
from torch import Tensor
from torch._library.custom_ops import OPDEFS
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

_GPU, _CPU = torch.device('cuda', 0), torch.device('cpu')
_RAW = {name: getattr(torch._C.TensorBase, name).__get__ for name in ('device', 'is_cuda')}
_RAW_GENERATOR = torch.Generator

# Operations that need a value on the host, or whose output's size depends on values.
_WAITING = {
    *('_local_scalar_dense', 'equal', 'allclose', 'nonzero', 'masked_select', 'bincount'),
    *('_unique2', 'unique_dim', 'unique_consecutive', 'multinomial', '_linalg_check_errors'),
}
_INDEXING = {'index', '_unsafe_index', 'index_put', 'index_put_', '_index_put_impl_'}
# Operations besides views that run no kernel.
_WITHOUT_KERNEL = {
    *('empty', 'empty_like', 'empty_strided', 'new_empty', 'new_empty_strided', '_unsafe_view'),
    *('_local_scalar_dense', 'detach', 'detach_', 'set_', 'resize_', 'lift_fresh', 'is_same_size'),
    *('_has_compatible_shallow_copy_type', 'record_stream', '_reshape_alias', 'sym_size'),
}
# Operations that take no scalar tensor of the CPU among tensors of the GPU.
_STRICT = {'cat', 'stack', 'mm', 'bmm', 'addmm', 'baddbmm'}
# Attributes of torch.cuda and what they are replaced with.
_CUDA = dict(
    is_available=lambda: True,
    is_initialized=lambda: True,
    is_bf16_supported=lambda *_, **__: True,
    is_current_stream_capturing=lambda: False,
    device_count=lambda: 1,
    current_device=lambda: 0,
    set_device=lambda _: None,
    get_device_name=lambda *_: 'pretended GPU',
    get_device_capability=lambda *_: (9, 0),
    manual_seed=lambda _: None,
    manual_seed_all=lambda _: None,
    get_rng_state=lambda *_: torch.zeros(16, dtype=torch.uint8),
    set_rng_state=lambda *_: None,
    get_rng_state_all=lambda: [torch.zeros(16, dtype=torch.uint8)],
    set_rng_state_all=lambda _: None,
    max_memory_allocated=lambda *_, **__: 0,
    memory_allocated=lambda *_, **__: 0,
    reset_peak_memory_stats=lambda *_, **__: None,
    empty_cache=lambda: None,
)


@dataclass
class Step:
    """What a GPU did, and what its host waited for, since :meth:`PretendedGPU.start_step`.

    Attributes:
        waits: Number of waits by cause and place, ``item at hooks/non_finite.py:_before_step``.
        launches: Number of launches by part of the program, see :class:`PretendedGPU`.
        operations: Number of launches by operation.
        moved: Bytes that the launched operations read and write, without caches.
    """

    waits: Counter[str] = field(default_factory=Counter)
    launches: Counter[str] = field(default_factory=Counter)
    operations: Counter[str] = field(default_factory=Counter)
    moved: int = 0


class PretendedGPU:
    """Context in which ``cuda`` is a pretended GPU.

    Args:
        parts: Part of the program -> pieces of the paths of its source files. A launch counts for
            the part of the innermost stack frame that is in one of these files, a launch in a
            backward pass for the part that ran the forward pass, and others for ``rest``.

    Attributes:
        steps: The steps so far; the last one is the current one.
    """

    def __init__(self, parts: Mapping[str, Sequence[str]] | None = None) -> None:
        self.steps = [Step()]
        self._parts = [(piece, part) for part, pieces in (parts or {}).items() for piece in pieces]
        self._part_of_file: dict[str, str | None] = {}
        # Sequence numbers of autograd's nodes and the parts that made them.
        self._nodes: tuple[list[int], list[str]] = ([], [])
        self._unrecorded = 0
        # Whether the calls of torch's functions that are in progress have an argument on the GPU.
        self._calls: deque[bool] = deque()

    def __enter__(self) -> PretendedGPU:
        self._modes = _Functions(self), _Operations(self)
        with ExitStack() as stack:
            for owner, name, value in _patches(self):
                stack.enter_context(mock.patch.object(owner, name, value))
            for mode in self._modes:
                stack.enter_context(mode)
            self._stack = stack.pop_all()
        return self

    def __exit__(self, *error: object) -> None:
        self._stack.close()

    @property
    def step(self) -> Step:
        """The current step."""
        return self.steps[-1]

    def start_step(self) -> None:
        """Count anew. Synchronising with an event of an earlier step is no wait."""
        self.steps.append(Step())
        self._nodes = ([], [])

    def wait(self, cause: str) -> None:
        """Record a wait of the host."""
        self.step.waits[f'{cause} at {_place()}'] += 1

    def launch(self, operation: str, tensors: Sequence[Tensor]) -> None:
        """Count a launch of an operation on these tensors."""
        self.step.operations[operation] += 1
        self.step.launches[self._part()] += 1
        self.step.moved += sum(tensor.numel() * tensor.element_size() for tensor in tensors)

    def transfer(self, source: Tensor, target: Tensor | None, non_blocking: bool) -> None:
        """Record a copy between the devices; ``target`` is None if it is allocated for it."""
        self.launch('copy between devices', [source])
        to_gpu = not is_on_gpu(source)
        on_host = source if to_gpu else target
        is_pinned = on_host is None or _mark(on_host) == 'pinned'
        if not (non_blocking and is_pinned):
            way = 'to the GPU' if to_gpu else 'to the host'
            self.wait(f'copy {way}' + (' from' * to_gpu + ' pageable memory') * non_blocking)

    @contextmanager
    def inside(self, call_is_on_gpu: bool) -> Iterator[None]:
        """Place what C++ code allocates without a tensor as an argument."""
        self._calls.append(call_is_on_gpu)
        try:
            yield
        finally:
            self._calls.pop()

    @contextmanager
    def unrecorded(self) -> Iterator[None]:
        """Let operations run as on a CPU."""
        self._unrecorded += 1
        try:
            yield
        finally:
            self._unrecorded -= 1

    @contextmanager
    def modes(self) -> Iterator[None]:
        """Enter the modes again in code that torch calls without them."""
        active = torch.overrides._get_current_function_mode_stack()
        with ExitStack() as stack:
            if self._modes[0] not in active:
                stack.enter_context(self._modes[0])
            yield

    def _part(self) -> str:
        if not self._parts:
            return 'rest'
        numbers, parts = self._nodes
        node = torch._C._current_autograd_node()
        if node is not None:
            at = bisect.bisect_right(numbers, node._sequence_nr()) - 1
            # A gradient is accumulated in a node of the largest number.
            return parts[at] if 0 <= at and node._sequence_nr() < 2**62 else 'rest'
        part = self._part_of_frame()
        number = torch.autograd._get_sequence_nr() - 1
        # An operation without a gradient makes no node.
        if not numbers or number > numbers[-1]:
            numbers.append(number)
            parts.append(part)
        return part

    def _part_of_frame(self) -> str:
        frame = sys._getframe(2)
        while frame is not None:
            name = frame.f_code.co_filename
            if name not in self._part_of_file:
                found = (part for piece, part in self._parts if piece in name)
                self._part_of_file[name] = next(found, None)
            part = self._part_of_file[name]
            if part is not None:
                return part
            frame = frame.f_back
        return 'rest'


def is_on_gpu(tensor: Tensor) -> bool:
    """Return whether a tensor is on the pretended GPU."""
    return _mark(tensor) == 'gpu'


def _mark(tensor: Tensor) -> str | None:
    """Return ``gpu``, ``pinned`` or None."""
    return getattr(tensor.untyped_storage(), 'pretended', None)


def _set_mark(value: Any, mark: str | None) -> Any:
    for tensor in _tensors(value):
        tensor.untyped_storage().pretended = mark
    return value


def _tensors(value: Any) -> list[Tensor]:
    return [leaf for leaf in tree_leaves(value) if isinstance(leaf, Tensor)]


def _place() -> str:
    """Return the innermost function outside torch and this file, ``folder/file.py:function``."""
    frame = sys._getframe(1)
    while frame.f_back is not None:
        name = frame.f_code.co_filename
        library = '/torch/' in name or name.endswith('contextlib.py') or name.startswith('<')
        if not library and name != __file__:
            break
        frame = frame.f_back
    return '/'.join(Path(frame.f_code.co_filename).parts[-2:]) + f':{frame.f_code.co_name}'


class _Operations(TorchDispatchMode):
    """Sees every operation, also those of a backward pass and inside torch's C++ functions."""

    def __init__(self, gpu: PretendedGPU) -> None:
        super().__init__()
        self.gpu = gpu

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        kwargs = kwargs or {}
        gpu = self.gpu
        if gpu._unrecorded:
            return func(*args, **kwargs)
        name = func._schema.name
        if name in OPDEFS:
            return self._custom(name, args, kwargs)
        if torch._C._dispatch_has_kernel_for_dispatch_key(func.name(), 'CompositeImplicitAutograd'):
            # Below autograd, as in a custom operation, torch does not do this itself.
            with self:
                return func.decompose(*args, **kwargs)
        name = name.removeprefix('aten::')
        tensors = _tensors((args, kwargs))
        on_gpu = any(map(is_on_gpu, tensors))
        if on_gpu:
            self._check(func, name, tensors, args)
        if name == 'copy_' and len({*map(is_on_gpu, tensors)}) == 2:
            target, source = tensors
            non_blocking = kwargs.get('non_blocking', len(args) > 2 and args[2])
            gpu.transfer(source, target, non_blocking)
            return func(*args, **kwargs)
        out = func(*args, **kwargs)
        if not (on_gpu or (not tensors and gpu._calls and gpu._calls[-1])):
            return out
        if name not in ('copy_', 'set_'):
            known = {tensor.untyped_storage()._cdata for tensor in tensors}
            made = [t for t in _tensors(out) if t.untyped_storage()._cdata not in known]
            _set_mark(made, 'gpu')
            if 'empty' in name:
                made[0].zero_()
        if not _is_view(func) and name not in _WITHOUT_KERNEL:
            gpu.launch(name, [*tensors, *_tensors(out)])
        return out

    def _check(self, func, name: str, tensors: list[Tensor], args: tuple) -> None:
        """Raise if the operation mixes devices, and record its waits."""
        gpu = self.gpu
        if name in _WAITING and is_on_gpu(tensors[0]):
            gpu.wait(name.strip('_'))
        elif name == 'repeat_interleave' and func._overloadname == 'Tensor':
            gpu.wait(name)
        elsewhere = [tensor for tensor in tensors if not is_on_gpu(tensor)]
        if name in _INDEXING:
            indices = [index for index in args[1] if index is not None]
            if any(index.dtype in (torch.bool, torch.uint8) for index in indices):
                # With one value it is a masked_fill.
                if not (name.startswith(('index_put', '_index_put')) and args[2].numel() == 1):
                    gpu.wait(f'{name} with a mask')
            if not all(map(is_on_gpu, indices)):
                gpu.wait(f'{name} with indices of the CPU')
            elsewhere = [t for t in elsewhere if not any(t is index for index in indices)]
        if name in ('copy_', '_to_copy', 'set_'):
            return
        writes_to_cpu = func._schema.is_mutable and not is_on_gpu(tensors[0])
        if writes_to_cpu or any(t.dim() or name in _STRICT for t in elsewhere):
            shapes = ', '.join(f'{tuple(t.shape)} on {t.device}' for t in tensors)
            raise RuntimeError(f'{name}: tensors must be on the same device, but are {shapes}')

    def _custom(self, name: str, args: tuple, kwargs: dict) -> Any:
        """Run a custom operation, which sees the GPU."""
        definition = OPDEFS[name]
        on_gpu = any(map(is_on_gpu, _tensors((args, kwargs))))
        function = definition._backend_fns.get('cuda' if on_gpu else 'cpu') or definition._init_fn
        with self.gpu.modes(), self:
            return function(*args, **kwargs)


class _Functions(TorchFunctionMode):
    """Sees the functions and methods that Python code calls."""

    def __init__(self, gpu: PretendedGPU) -> None:
        super().__init__()
        self.gpu = gpu

    def __torch_function__(self, func, types, args=(), kwargs=None):
        kwargs = dict(kwargs or {})
        name = getattr(func, '__name__', '')
        if name in ('untyped_storage', '__get__', '__set__'):
            return func(*args, **kwargs)
        if args and isinstance(args[0], Tensor):
            method = _METHODS.get(name)
            if method is not None:
                return method(self.gpu, func, args, kwargs)
        if kwargs.get('device') is not None or kwargs.get('pin_memory'):
            return self._make(func, name, args, kwargs)
        on_gpu = any(map(is_on_gpu, _tensors((args, kwargs))))
        with self.gpu.inside(on_gpu):
            return func(*args, **kwargs)

    def _make(self, func, name: str, args: tuple, kwargs: dict) -> Any:
        """Call a function that makes a tensor on a device."""
        device = _as_device(kwargs.get('device') or 'cpu')
        is_pinned = kwargs.pop('pin_memory', False)
        if name in ('as_tensor', 'asarray') and isinstance(args[0], Tensor):
            return _to(self.gpu, Tensor.to, args[:1], kwargs)
        kwargs['device'] = _CPU
        with self.gpu.unrecorded():
            out = func(*args, **kwargs)
        if device.type == 'cpu':
            return _set_mark(out, 'pinned') if is_pinned else out
        if name in ('tensor', 'as_tensor', 'asarray', 'new_tensor'):
            self.gpu.wait(f'torch.{name}(device=cuda)')
        if 'empty' in name:
            out.zero_()
        else:
            self.gpu.launch(name, _tensors(out))
        return _set_mark(out, 'gpu')


def _to(gpu: PretendedGPU, func, args: tuple, kwargs: dict) -> Tensor:
    """Do what ``Tensor.to``, ``cpu``, ``cuda`` and ``type_as`` do."""
    tensor, *rest = args
    device, dtype, flags = kwargs.get('device'), kwargs.get('dtype'), []
    name = func.__name__
    if name in ('cpu', 'cuda'):
        device = name
        flags = [value for value in rest if isinstance(value, bool)]
        rest = []
    for value in (*rest, *filter(None, [kwargs.get('other')])):
        if isinstance(value, Tensor):
            device, dtype = value.device, value.dtype
        elif isinstance(value, torch.dtype):
            dtype = value
        elif isinstance(value, bool):
            flags.append(value)
        elif value is not None:
            device = value
    non_blocking = kwargs.get('non_blocking', bool(flags and flags[0]))
    here, there = is_on_gpu(tensor), is_on_gpu(tensor)
    if device is not None:
        there = _as_device(device).type == 'cuda'
    options = dict(copy=kwargs.get('copy', len(flags) > 1 and flags[1]), dtype=tensor.dtype)
    options |= {
        key: value
        for key, value in (('dtype', dtype), ('memory_format', kwargs.get('memory_format')))
        if value is not None
    }
    if here == there:
        with gpu.inside(here):
            return torch._C.TensorBase.to(tensor, **options)
    gpu.transfer(tensor, None, non_blocking)
    with gpu.unrecorded():
        moved = torch._C.TensorBase.to(tensor, **options | dict(copy=True))
    return _set_mark(moved, 'gpu' if there else 'pinned' if non_blocking else None)


def _pin_memory(gpu: PretendedGPU, func, args: tuple, kwargs: dict) -> Tensor:
    with gpu.unrecorded():
        return _set_mark(args[0].clone(), 'pinned')


def _is_pinned(gpu: PretendedGPU, func, args: tuple, kwargs: dict) -> bool:
    return _mark(args[0]) == 'pinned'


def _deepcopy(gpu: PretendedGPU, func, args: tuple, kwargs: dict) -> Tensor:
    mark = _mark(args[0])
    with gpu.unrecorded():
        return _set_mark(func(*args, **kwargs), mark)


def _tolist(gpu: PretendedGPU, func, args: tuple, kwargs: dict) -> list:
    if is_on_gpu(args[0]):
        gpu.wait('tolist')
    with gpu.unrecorded():
        return func(*args, **kwargs)


def _numpy(gpu: PretendedGPU, func, args: tuple, kwargs: dict) -> Any:
    if is_on_gpu(args[0]):
        raise TypeError("can't convert cuda:0 device type tensor to numpy; use Tensor.cpu() first")
    return func(*args, **kwargs)


def _one_hot(gpu: PretendedGPU, func, args: tuple, kwargs: dict) -> Tensor:
    # With the number of classes, a GPU does not look at the values.
    if is_on_gpu(args[0]) and (len(args) > 1 or 'num_classes' in kwargs):
        gpu.launch('one_hot', args[:1])
        with gpu.unrecorded():
            return _set_mark(func(*args, **kwargs), 'gpu')
    return func(*args, **kwargs)


_METHODS = dict(
    to=_to,
    cpu=_to,
    cuda=_to,
    type_as=_to,
    pin_memory=_pin_memory,
    is_pinned=_is_pinned,
    __deepcopy__=_deepcopy,
    tolist=_tolist,
    numpy=_numpy,
    __array__=_numpy,
    one_hot=_one_hot,
)


def _as_device(device: Any) -> torch.device:
    return _GPU if isinstance(device, int) else torch.device(device)


def _is_view(func) -> bool:
    returns = func._schema.returns
    return any(r.alias_info is not None and not r.alias_info.is_write for r in returns)


def _patches(gpu: PretendedGPU) -> Iterator[tuple[Any, str, Any]]:
    """Return the attributes of torch that a pretended GPU replaces: owner, name and value."""

    def device(tensor: Tensor) -> torch.device:
        return _GPU if is_on_gpu(tensor) else _RAW['device'](tensor)

    yield torch.Tensor, 'device', property(device)
    yield torch.Tensor, 'is_cuda', property(is_on_gpu)
    yield torch.Tensor, 'is_cpu', property(lambda tensor: not is_on_gpu(tensor))
    for name, value in _CUDA.items():
        yield torch.cuda, name, value
    yield torch.cuda, 'synchronize', lambda *_: gpu.wait('torch.cuda.synchronize')
    yield torch.cuda, 'Event', lambda **_: _Event(gpu)
    yield torch.accelerator, 'is_available', lambda: True
    yield torch.accelerator, 'current_accelerator', lambda *_, **__: torch.device('cuda')
    stream = SimpleNamespace(is_capturing=lambda: False)
    yield torch.accelerator, 'current_stream', lambda *_: stream
    yield mmengine.device.utils, 'DEVICE', 'cuda'
    yield torch, 'Generator', _Generator

    start = torch.amp.autocast_mode.autocast.__init__

    def autocast(self, device_type, dtype=None, enabled=True, cache_enabled=None):
        if device_type == 'cuda':
            device_type, dtype = 'cpu', dtype or torch.float16
        start(self, device_type, dtype, enabled, cache_enabled)

    yield torch.amp.autocast_mode.autocast, '__init__', autocast
    of_cpu = partial(torch.is_autocast_enabled, 'cpu'), partial(torch.get_autocast_dtype, 'cpu')
    yield torch, 'is_autocast_enabled', lambda *_: of_cpu[0]()
    yield torch, 'get_autocast_dtype', lambda *_: of_cpu[1]()

    def kernel(function, grid) -> Callable[..., None]:
        def launch(*args: Any, **kwargs: Any) -> None:
            tensors = _tensors((args, kwargs))
            if not all(map(is_on_gpu, tensors)):
                raise ValueError(f'{function.fn.__name__}: a pointer is of the CPU')
            gpu.launch(function.fn.__name__, tensors)

        return launch

    if importlib.util.find_spec('triton'):
        yield importlib.import_module('triton.runtime.jit').KernelInterface, '__getitem__', kernel

    run_backward = torch.autograd._engine_run_backward

    def engine(roots, *args, **kwargs):
        """Run a backward pass, in which torch would call Python code without the modes."""
        with gpu.inside(any(map(is_on_gpu, _tensors(roots)))), gpu.modes():
            return run_backward(roots, *args, **kwargs)

    for owner in (torch.autograd, torch.autograd.graph):
        yield owner, '_engine_run_backward', engine

    group = torch.utils._foreach_utils._group_tensors_by_device_and_dtype

    def grouped(lists, with_indices=False):
        """Group tensors as torch does, which reads their device in C++."""
        groups = {}
        for (_, dtype), (parts, indices) in group(lists, with_indices).items():
            first = _tensors(parts)[0]
            groups[first.device, dtype] = parts, indices
        return groups

    optimizers = sys.modules[torch.optim.Optimizer.__module__]
    for owner in (torch.utils._foreach_utils, optimizers, torch.nn.utils.clip_grad):
        yield owner, '_group_tensors_by_device_and_dtype', grouped


class _Event:
    """A CUDA event: its work is done when the next step begins."""

    def __init__(self, gpu: PretendedGPU) -> None:
        self.gpu = gpu
        self.step: Step | None = None

    def record(self, *_: Any) -> None:
        self.step = self.gpu.step

    def query(self) -> bool:
        return self.step is not self.gpu.step

    def synchronize(self) -> None:
        if not self.query():
            self.gpu.wait('event of this step')


class _Generator:
    """Makes a generator of the CPU, which draws for the pretended GPU too."""

    def __new__(cls, device: Any = 'cpu') -> torch.Generator:
        return _RAW_GENERATOR('cpu')

"""Measure what only a GPU can show, in at most 8 minutes on one H100 with 16 cores.

python benchmarks/gpu.py --data-root data/cifar100

The most important parts run first. Each writes its results to the JSON file at once, and a failed
part does not stop the others. The last part, the accuracy of six methods on CIFAR-100, takes the
time that is left. Without a GPU everything is tiny: the figures mean nothing, but the script runs
to its end, and what needs a GPU is marked as skipped.
"""

from __future__ import annotations

import argparse
import copy
import json
import logging
import math
import multiprocessing
import os
import queue
import statistics
import subprocess
import sys
import tempfile
import time
import traceback
import warnings
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from functools import partial
from itertools import product
from pathlib import Path
from typing import Any
from unittest import mock

import torch
import torch.nn.functional as F
from mmengine.config import Config
from mmengine.optim import build_optim_wrapper
from mmengine.registry import init_default_scope
from mmpretrain.structures import DataSample
from torch import Tensor, nn
from torch.utils.data._utils.pin_memory import pin_memory

ROOT = Path(__file__).resolve().parents[1]
sys.path[:0] = [str(ROOT / 'tests/gpu'), str(ROOT)]

from pretended_run import run_steps  # noqa: E402

from mldr_kd_mm.apis.configs import compose, load_config, read_config  # noqa: E402
from mldr_kd_mm.datasets import VerifiedCIFAR100  # noqa: E402
from mldr_kd_mm.engine.launch import use_fused_optimizer  # noqa: E402
from mldr_kd_mm.models.backbones import selective_scan  # noqa: E402
from mldr_kd_mm.models.distillers.teacher_cache import TeacherCache  # noqa: E402
from mldr_kd_mm.models.losses.relation import FORMS  # noqa: E402
from mldr_kd_mm.registry import MODELS  # noqa: E402
from mldr_kd_mm.structures.view import View  # noqa: E402
from mldr_kd_mm.utils.atomic_files import atomic_write  # noqa: E402
from mldr_kd_mm.utils.errors import ConfigError, describe  # noqa: E402

Results = Iterator[tuple[str, Any]]
# Methods and options of the steps that are timed.
VARIANTS = (
    *('scratch', 'kd', 'mldr, live', 'mldr, cached', 'mldr, written out'),
    *('mldr, live, graphs', 'mldr, cached, graphs', 'kd, graphs'),
)
METHODS = ('scratch', 'kd', 'ofa', 'rsd', 'mldr', 'mldr_rsd')
PAIR, TEACHER = 'deit_to_mobilenet_c100_32px', 'deit-small_c100_32px'


class Skipped(Exception):
    """A part cannot run on this machine."""


@dataclass
class Bench:
    """What the parts share.

    Attributes:
        out: The JSON file.
        folder: Folder for temporary files.
        data_root: Folder that holds ``cifar-100-python/``.
        methods: Methods of the accuracy run.
        seconds: Time limit of the whole script.
    """

    out: Path
    folder: Path
    data_root: Path
    methods: tuple[str, ...] = METHODS
    seconds: float = 456
    start: float = field(default_factory=time.monotonic)
    results: dict[str, dict[str, Any]] = field(default_factory=dict)

    @property
    def on_gpu(self) -> bool:
        """Whether there is a GPU."""
        return torch.cuda.is_available()

    @property
    def device(self) -> str:
        """The device of the models."""
        return 'cuda' if self.on_gpu else 'cpu'

    @property
    def left(self) -> float:
        """Seconds left."""
        return self.seconds - (time.monotonic() - self.start)

    def add(self, part: str, key: str, value: Any) -> None:
        """Print a result and write all results so far."""
        self.results.setdefault(part, {})[key] = value
        print(f'[{self.seconds - self.left:4.0f} s] {part}: {key}: {value}', flush=True)
        with atomic_write(self.out) as file:
            file.write(json.dumps(self.results, indent=1, default=str).encode())

    def run(self, parts: dict[str, Callable[[Bench], Results]]) -> list[str]:
        """Run the parts; return the names of those that failed."""
        failed = []
        for name, part in parts.items():
            begin = time.monotonic()
            try:
                for key, value in part(self):
                    self.add(name, key, value)
            except Skipped as reason:
                self.add(name, 'skipped', str(reason))
            except Exception as error:
                traceback.print_exc()
                self.add(name, 'failed', describe(error))
                failed.append(name)
            self.add(name, 'seconds', round(time.monotonic() - begin, 1))
        return failed

    def needs_gpu(self) -> None:
        """Skip the rest of a part on a machine without a GPU."""
        if not self.on_gpu:
            raise Skipped('needs a GPU')


def synchronize() -> None:
    """Wait for the GPU, if there is one."""
    if torch.cuda.is_available():
        torch.cuda.synchronize()


def timed(call: Callable[[], object], repeats: int, warm_up: int = 3) -> float:
    """Return the median milliseconds of a call, alone on the GPU."""
    for _ in range(warm_up):
        call()
    synchronize()
    taken = []
    for _ in range(repeats):
        start = time.perf_counter()
        call()
        synchronize()
        taken.append(time.perf_counter() - start)
    return round(1e3 * statistics.median(taken), 3)


def measure(bench: Bench, call: Callable[[], object], repeats: int = 15) -> dict[str, Any]:
    """Return the time, memory and kernel launches of a call."""
    if not bench.on_gpu:
        return dict(ms=timed(call, 1, 1))
    call()
    torch.cuda.synchronize()
    before = torch.cuda.memory_allocated()
    torch.cuda.reset_peak_memory_stats()
    ms = timed(call, repeats)
    peak = torch.cuda.max_memory_allocated()
    activities = [torch.profiler.ProfilerActivity.CPU, torch.profiler.ProfilerActivity.CUDA]
    with torch.profiler.profile(activities=activities) as profile:
        call()
        torch.cuda.synchronize()
    events = profile.key_averages()
    launches = sum(e.count for e in events if 'LaunchKernel' in e.key or 'GraphLaunch' in e.key)
    return dict(
        ms=ms,
        gpu_ms=round(sum(e.self_device_time_total for e in events) / 1e3, 3),
        launches=launches,
        gib=round((peak - before) / 2**30, 3),
        peak_gib=round(peak / 2**30, 2),
    )


def environment(bench: Bench) -> Results:
    """The machine."""
    yield 'torch', torch.__version__
    yield 'device', torch.cuda.get_device_name() if bench.on_gpu else 'cpu'
    yield 'cores', os.cpu_count()
    command = ['git', '-C', str(ROOT), 'describe', '--always', '--dirty']
    yield 'commit', subprocess.run(command, capture_output=True, text=True).stdout.strip()


def loss_cases() -> dict[str, tuple[dict, Tensor, Tensor, dict[str, Tensor]]]:
    """Return the losses: config, student, teacher and labels."""
    batch, classes, width, heads = 16, 100, 48, 6
    random = torch.Generator().manual_seed(0)

    def draw(*shape: int) -> Tensor:
        return 3 * torch.randn(*shape, generator=random)

    logits = draw(heads, batch, classes), draw(batch, classes)
    features = draw(batch, width), draw(batch, width)
    maps = draw(batch, width, 8, 8), draw(batch, width, 4, 4)
    long = draw(2, 8, 2500), draw(8, 2500)
    target = dict(target=torch.randint(0, classes, (batch,), generator=random))
    widths = dict(student_width=width, teacher_width=width)
    cases = {
        kind: (dict(type=kind), *logits, target if kind in ('DKDLoss', 'OFALoss') else {})
        for kind in 'DFRALoss KDLoss DISTLoss LogitStandardizationLoss DKDLoss OFALoss'.split()
    }
    for relation in ('dense', 'linear'):
        cases[f'DFRALoss {relation}'] = (dict(type='DFRALoss', relation=relation), *logits, {})
    cases['DFRALoss, 2500 classes'] = (dict(type='DFRALoss'), *long, {})
    cases['RKDLoss'] = (dict(type='RKDLoss'), *features, {})
    for kind in ('CCLoss', 'RSDLoss'):
        cases[kind] = (dict(type=kind, **widths), *features, {})
    crd = dict(type='CRDLoss', num_samples=64, negatives=8, **widths)
    cases['CRDLoss'] = (crd, *features, dict(index=torch.arange(batch)))
    cases['FitNetLoss'] = (dict(type='FitNetLoss', **widths), *maps, {})
    return cases


def losses(bench: Bench) -> Results:
    """Relative errors of each loss and its gradient against float64 on the CPU.

    All get the same inputs, rounded to the dtype.
    """

    def evaluate(loss, student, teacher, labels, device, dtype, compute) -> list[Tensor]:
        loss = copy.deepcopy(loss).to(device, compute if compute == torch.float64 else None)
        student, teacher = (x.to(dtype).to(device, compute) for x in (student, teacher))
        student = student.clone().requires_grad_()
        # Sample indices stay on the CPU.
        labels = {k: v if k == 'index' else v.to(device) for k, v in labels.items()}
        with torch.autocast(device, dtype, enabled=compute in (torch.float16, torch.bfloat16)):
            value = loss(student, teacher, **labels)
        value.sum().backward()
        return [value.detach().double().cpu(), student.grad.double().cpu()]

    for name, (config, student, teacher, labels) in loss_cases().items():
        torch.manual_seed(0)
        loss = MODELS.build(config)
        errors = {}
        for dtype in (torch.float32, torch.float16, torch.bfloat16):
            inputs = student, teacher, labels
            # A GPU's generator draws other negatives for CRD than the CPU's.
            with mock.patch('torch.Generator', lambda _='cpu', real=torch.Generator: real()):
                draw = partial(_draw_on_cpu, torch.randint)
                with mock.patch('torch.randint', draw):
                    right = evaluate(loss, *inputs, 'cpu', dtype, torch.float64)
                    found = evaluate(loss, *inputs, bench.device, dtype, dtype)
            pairs = zip(found, right, strict=True)
            errors[str(dtype).removeprefix('torch.')] = [
                float(f'{(ours - exact).norm() / exact.norm().clamp_min(1e-30):.1e}')
                for ours, exact in pairs
            ]
        yield name, errors


def _draw_on_cpu(randint: Callable[..., Tensor], *args: Any, device: Any = None, **kwargs: Any):
    return randint(*args, **kwargs).to(device)


def written_out(student: Tensor, teacher: Tensor) -> Tensor:
    """DFRA by its definition, a relation for each head, under autograd."""

    def relation(x: Tensor) -> Tensor:
        return (teacher.shape[-1] ** -0.5 * x.unsqueeze(2) * x.unsqueeze(1)).log_softmax(1)

    def kl(log_p: Tensor, log_q: Tensor) -> Tensor:
        return (log_p.exp() * (log_p - log_q)).sum(1).mean()

    student, teacher = student.float(), teacher.detach().float()
    values = [
        kl(relation(teacher), relation(head))
        + kl(relation(teacher.T), relation(head.T))
        + 2 * kl(teacher.log_softmax(-1), head.log_softmax(-1))
        for head in student
    ]
    return torch.stack(values)


def relations(bench: Bench) -> Results:
    """Time, memory and error of the forms of DFRA for six heads, forward and backward."""
    shapes = ((128, 100), (128, 1000), (128, 2500)) if bench.on_gpu else ((4, 10), (3, 20))
    for batch, classes in shapes:
        torch.manual_seed(0)
        student = 3 * torch.randn(6, batch, classes, device=bench.device)
        teacher = 3 * torch.randn(batch, classes, device=bench.device)
        student.requires_grad_()

        def gradient(loss, student=student, teacher=teacher) -> Tensor:
            (found,) = torch.autograd.grad(loss(student, teacher).sum(), student)
            return found

        exact = MODELS.build(dict(type='DFRALoss', relation='dense'))
        exact = gradient(exact, student.detach().double().requires_grad_(), teacher.double())
        forms = {form: MODELS.build(dict(type='DFRALoss', relation=form)) for form in FORMS}
        if classes <= 1000:
            forms['written out'] = written_out
        for form, loss in forms.items():
            name = f'B={batch}, C={classes}, {form}'
            try:
                error = (gradient(loss) - exact).norm() / exact.norm()
                result = measure(bench, partial(gradient, loss))
            except (torch.cuda.OutOfMemoryError, ConfigError) as problem:
                yield name, str(problem)
            else:
                yield name, result | dict(error_of_gradient=float(f'{error:.1e}'))


def batches(bench: Bench, size: int, pixels: int) -> Iterator[dict]:
    """Return random batches as a data loader would, in pinned memory."""
    images = torch.randint(0, 256, (size, 3, pixels, pixels), dtype=torch.uint8)
    while True:
        samples = []
        for index in range(size):
            sample = DataSample().set_gt_label(index % 100)
            sample.set_field(View(0, 0, index), 'view', field_type='metainfo')
            samples.append(sample)
        data = dict(inputs=images, data_samples=samples)
        yield pin_memory(data) if bench.on_gpu else data


def trainer(bench: Bench, cfg: Config, size: int, pixels: int = 224) -> tuple[nn.Module, Callable]:
    """Build a config's model, and a function that trains it for a step."""
    cfg.model.setdefault('data_preprocessor', cfg.data_preprocessor)
    if 'teacher' in cfg.model:
        cfg.model.teacher_checkpoint = None
    if bench.on_gpu:
        use_fused_optimizer(cfg)
    torch.manual_seed(0)
    model = MODELS.build(cfg.model).to(bench.device).train()
    wrapper = build_optim_wrapper(model, cfg.optim_wrapper)
    data = batches(bench, size, pixels)
    # Made ahead, as by the workers of a data loader.
    ready = [next(data) for _ in range(24 if bench.on_gpu else 4)]
    return model, lambda: model.train_step(ready.pop(), wrapper)


def steps(bench: Bench) -> Results:
    """Time, memory and launches of a step at 224 px."""
    size = 128 if bench.on_gpu else 2
    graphs = dict(backend='cudagraphs')  # captures what the package compiles, without inductor
    for teacher, precision in product(('swin-tiny', 'vit-small'), ('fp32', 'fp16')):
        if not bench.on_gpu and (teacher, precision) != ('swin-tiny', 'fp32'):
            continue
        pair = read_config(ROOT / f'configs/pairs/{teacher}_to_resnet18_c100.py')
        if precision == 'fp16':
            pair.optim_wrapper.update(type='AmpOptimWrapper', loss_scale='dynamic')
        for variant in VARIANTS:
            name, (method, *options) = f'{teacher}, {precision}, {variant}', variant.split(', ')
            if method == 'scratch' and teacher != 'swin-tiny':
                continue  # the same student
            if bench.on_gpu and bench.left < 0.68 * bench.seconds:
                yield name, 'skipped: no time left'
                continue
            if 'graphs' in options and not bench.on_gpu:
                yield name, 'skipped: needs a GPU'
                continue
            cfg = compose(pair, method)
            if 'graphs' in options:
                parts = ('teacher_compile', 'student_compile', 'losses_compile')
                cfg.model.update(dict.fromkeys(parts, graphs))
            try:
                model, step = trainer(bench, cfg, size)
                if 'written out' in options:
                    model.losses[0].losses[0].forward = written_out
                if 'cached' in options:
                    folder = bench.folder / name.replace(', ', '-')
                    model.teacher.cache = _cache(folder, size)
                yield name, measure(bench, step)
            except Exception as error:
                yield name, f'failed: {describe(error)}'


def _cache(folder: Path, size: int) -> TeacherCache:
    fingerprint = dict(views=1, samples=size, dtype='fp32')
    return TeacherCache(folder, fingerprint, dict(logits=dict(tap='logits', shape=[100])))


class WaitRecorder:
    """Records where the host waits in each step, as the CUDA driver reports it."""

    def __init__(self) -> None:
        self.steps: list[Counter[str]] = [Counter()]
        self.times = [time.perf_counter()]

    def start_step(self) -> None:
        """Begin a step; called before each iteration."""
        self.steps.append(Counter())
        self.times.append(time.perf_counter())

    def record(self, message: Any, category: Any, filename: str, line: int, *_: Any) -> None:
        """Replace ``warnings.showwarning``."""
        if 'synchroniz' in str(message):
            self.steps[-1][f'{"/".join(Path(filename).parts[-2:])}:{line}'] += 1


def waits(bench: Bench) -> Results:
    """Where the host waits in steps that do not log, and the images per second."""
    size, count, workers = (128, 60, 8) if bench.on_gpu else (4, 6, 0)
    for path in ('scratch/mobilenet_c100_32px', f'mldr/{PAIR}'):
        cfg = load_config(str(ROOT / f'configs/{path}.py'))
        cfg.default_hooks.logger.interval = 1000
        recorder = WaitRecorder()
        if bench.on_gpu:
            torch.cuda.set_sync_debug_mode('warn')
        with warnings.catch_warnings(), mock.patch('warnings.showwarning', recorder.record):
            warnings.simplefilter('always')
            run_steps(cfg, recorder, bench.folder / Path(path).name, count, size, workers)
        if bench.on_gpu:
            torch.cuda.set_sync_debug_mode('default')
        # The last step was not run.
        steps, times = recorder.steps[count // 2 : -1], recorder.times[count // 2 :]
        rate = size * len(steps) / (times[-1] - times[0])
        found = dict(sum(steps, Counter())) if bench.on_gpu else 'skipped: needs a GPU'
        yield path, dict(steps=len(steps), waits=found, images_per_second=round(rate))


def nccl(bench: Bench) -> Results:
    """tools/dist_train.sh over nccl with one process: train, then resume."""
    bench.needs_gpu()
    data = _random_cifar(bench.folder / 'cifar')
    for number in (1, 2):
        fields = {
            'train_dataloader.dataset.data_root': data,
            'train_dataloader.dataset.verify': False,
            'val_dataloader.dataset.data_root': data,
            'val_dataloader.dataset.verify': False,
            'model.teacher_checkpoint': None,
            'train_cfg.max_epochs': number,
            'train_cfg.val_interval': 1,
        }
        command = ['bash', ROOT / 'tools/dist_train.sh', ROOT / f'configs/mldr/{PAIR}.py', '1']
        command += ['--work-dir', bench.folder / 'nccl', *['--resume'] * (number > 1)]
        command += ['--cfg-options', *(f'{key}={value}' for key, value in fields.items())]
        environment = os.environ | dict(PYTHON=sys.executable, PYTHONPATH=str(ROOT))
        done = subprocess.run(
            list(map(str, command)), capture_output=True, text=True, timeout=90, env=environment
        )
        result = dict(code=done.returncode)
        if done.returncode:
            result['output'] = (done.stdout + done.stderr)[-1000:]
        yield f'epoch {number}', result


def _random_cifar(root: Path) -> Path:
    """Write random images in the layout of CIFAR-100; return their folder."""
    sys.path.insert(0, str(ROOT / 'tests'))
    from helpers import make_cifar100

    return make_cifar100(root)


def mamba(bench: Bench) -> Results:
    """One direction of a layer of Vim-S: the form that runs here against the loop over time."""
    b, e, n, length = (32, 384, 16, 197) if bench.on_gpu else (2, 8, 4, 9)
    wide, narrow = (b, e, length), (b, n, length)
    inputs = [
        torch.randn(*shape, device=bench.device)
        for shape in (wide, wide, (e, n), narrow, narrow, (e,), wide, (e,))
    ]
    inputs[2] = -inputs[2].abs()
    for tensor in inputs:
        tensor.requires_grad_()

    def gradients(scan: Callable[..., Tensor]) -> list[Tensor]:
        return list(torch.autograd.grad(scan(*inputs).square().sum(), inputs))

    loop, default = selective_scan._SelectiveScan.apply, selective_scan.selective_scan
    errors = [
        float(f'{(ours - exact).norm() / exact.norm():.1e}')
        for ours, exact in zip(gradients(default), gradients(loop), strict=True)
    ]
    yield 'errors of the gradients', errors
    for name, scan in dict(default=default, loop=loop).items():
        yield name, measure(bench, partial(gradients, scan), 5)


def load_images(bench: Bench) -> dict[str, tuple[Tensor, Tensor]]:
    """Return images (N, 3, 32, 32) and labels (N,) of both splits; random ones without a GPU."""
    if not bench.on_gpu:
        images = torch.randint(0, 256, (64, 3, 32, 32), dtype=torch.uint8)
        return dict.fromkeys(('train', 'test'), (images, torch.arange(64)))
    if not (bench.data_root / 'cifar-100-python').exists():
        raise Skipped(f'there is no CIFAR-100 in {bench.data_root}; set --data-root')
    data = {}
    for split in ('train', 'test'):
        dataset = VerifiedCIFAR100(str(bench.data_root), split, verify=False, pipeline=[])
        records = [dataset.get_data_info(index) for index in range(len(dataset))]
        images = torch.stack([torch.from_numpy(record['img']) for record in records])
        labels = torch.tensor([record['gt_label'] for record in records])
        data[split] = images.permute(0, 3, 1, 2).contiguous(), labels
    return data


class Training:
    """Training of a config's model on images that stay on the device.

    Args:
        cfg: The config. Its recipe gives the optimizer; the learning rate warms up during the first
            tenth of the steps and follows a cosine to a hundredth.
        data: See :func:`load_images`.
        device: The device.
    """

    def __init__(self, cfg: Config, data: dict[str, tuple[Tensor, Tensor]], device: str) -> None:
        cfg = copy.deepcopy(cfg)
        cfg.model.setdefault('data_preprocessor', cfg.data_preprocessor)
        if device == 'cuda':
            use_fused_optimizer(cfg)
        torch.manual_seed(0)
        self.model = MODELS.build(cfg.model)
        self.model.init_weights()
        self.model.to(device)
        self.wrapper = build_optim_wrapper(self.model, cfg.optim_wrapper)
        self.data = {
            split: (images.to(device), labels.to(device))
            for split, (images, labels) in data.items()
        }
        self.size = 128 if device == 'cuda' else 16
        self.rates = [group['lr'] for group in self.wrapper.param_groups]

    @property
    def steps(self) -> int:
        """Steps of an epoch; an incomplete batch is left out."""
        return len(self.data['train'][1]) // self.size

    def train(self, epochs: float) -> Iterator[int]:
        """Train, and yield the number of each step."""
        images, labels = self.data['train']
        total = int(epochs * self.steps)
        for number in range(total):
            if number % self.steps == 0:
                order = torch.randperm(len(labels), device=labels.device)
            share = (number + 1) / total
            factor = min(10 * share, 0.505 + 0.495 * math.cos(math.pi * share))
            for group, rate in zip(self.wrapper.param_groups, self.rates, strict=True):
                group['lr'] = factor * rate
            start = number % self.steps * self.size
            chosen = order[start : start + self.size]
            self.train_step(images[chosen], labels[chosen])
            yield number

    def train_step(self, images: Tensor, labels: Tensor) -> None:
        """Train on a batch of uint8 images."""
        self.model.train()
        samples = [DataSample().set_gt_label(label) for label in labels.split(1)]
        for number, sample in enumerate(samples):
            sample.set_field(number, 'sample_idx', field_type='metainfo')
        losses = self.model(self._normalize(augment(images)), samples, mode='loss')
        loss, _ = self.model.parse_losses(losses)
        self.wrapper.update_params(loss)

    @torch.no_grad()
    def accuracy(self) -> float:
        """Return the share of correct predictions on the test images, in percent."""
        self.model.eval()
        images, labels = self.data['test']
        right = sum(
            (self.model(self._normalize(part)).argmax(1) == target).sum()
            for part, target in zip(images.split(500), labels.split(500), strict=True)
        )
        return round(100 * float(right) / len(labels), 2)

    def time_epoch(self, steps: int) -> float:
        """Return the seconds that an epoch takes, from a few steps."""
        warm_up = max(1, steps // 4)
        for number in self.train((steps + warm_up + 0.5) / self.steps):
            if number == warm_up - 1:
                synchronize()
                start = time.perf_counter()
        synchronize()
        return (time.perf_counter() - start) / steps * self.steps

    def _normalize(self, images: Tensor) -> Tensor:
        preprocessor = self.model.data_preprocessor
        return (images.float() - preprocessor.mean) / preprocessor.std


def augment(images: Tensor) -> Tensor:
    """Crop images (B, 3, H, W) at random after padding by 4 pixels, and flip half of them."""
    (batch, channels, height, width), device = images.shape, images.device
    offsets = torch.randint(0, 9, (2, batch, 1), device=device)
    rows = offsets[0] + torch.arange(height, device=device)
    columns = offsets[1] + torch.arange(width, device=device)
    flip = torch.rand(batch, 1, device=device) < 0.5
    columns = torch.where(flip, columns.flip(1), columns)
    return F.pad(images, (4, 4, 4, 4))[
        torch.arange(batch, device=device)[:, None, None, None],
        torch.arange(channels, device=device)[:, None, None],
        rows[:, None, :, None],
        columns[:, None, None, :],
    ]


def train_student(method: str, folder: Path, device: str, barrier, epochs, results) -> None:
    """Train a student in a process of its own, at the same time as the others.

    Args:
        method: The method.
        folder: Folder with the images and the teacher's checkpoint.
        device: The device.
        barrier: Barrier of all processes.
        epochs: Queue that gives the number of epochs.
        results: Queue of (method, key, value).
    """
    try:
        torch.set_num_threads(1)
        init_default_scope('mldr_kd_mm')
        logging.disable(logging.WARNING)
        data = torch.load(folder / 'images.pt')
        pair = read_config(ROOT / f'configs/pairs/{PAIR}.py')
        pair.model.teacher_checkpoint = str(folder / 'teacher.pth')
        cfg = compose(pair, method)
        training = Training(cfg, data, device)
        barrier.wait(120)
        results.put((method, 'seconds of an epoch', training.time_epoch(_PROBE[device])))
        training = Training(cfg, data, device)
        count = epochs.get(timeout=120)
        for number in training.train(count):
            if (number + 1) % training.steps == 0:
                results.put((method, 'accuracy', training.accuracy()))
        results.put((method, 'done', True))
    except Exception as error:
        results.put((method, 'failed', describe(error)))


# Steps that are timed to choose the number of epochs.
_PROBE = dict(cuda=60, cpu=2)


def accuracy(bench: Bench) -> Results:
    """Test accuracy of a student on CIFAR-100 by method, all on one GPU at the same time."""
    data = load_images(bench)
    torch.save(data, bench.folder / 'images.pt')
    cfg = read_config(ROOT / f'configs/teachers/{TEACHER}.py')
    seconds = Training(cfg, data, bench.device).time_epoch(_PROBE[bench.device])
    epochs = max(1, min(40, int(0.25 * bench.left / seconds))) if bench.on_gpu else 1
    teacher = Training(cfg, data, bench.device)
    for _ in teacher.train(epochs):
        pass
    state = teacher.model.state_dict()
    torch.save(dict(state_dict=state), bench.folder / 'teacher.pth')
    yield 'teacher', dict(epochs=epochs, seconds=round(seconds, 2), accuracy=teacher.accuracy())
    del teacher, state

    # A process that has used CUDA cannot fork.
    context = multiprocessing.get_context('spawn' if bench.on_gpu else 'fork')
    barrier = context.Barrier(len(bench.methods))
    chosen, results = context.Queue(), context.Queue()
    shared = (bench.folder, bench.device, barrier, chosen, results)
    processes = [
        context.Process(target=train_student, args=(method, *shared), daemon=True)
        for method in bench.methods
    ]
    for process in processes:
        process.start()
    try:
        yield from _collect(bench, chosen, results)
    finally:
        for process in processes:
            process.kill()


def _collect(bench: Bench, chosen, results) -> Results:
    """Give the processes their number of epochs, and yield what they report."""
    rates: dict[str, float] = {}
    curves: dict[str, list[float]] = {method: [] for method in bench.methods}
    running = {*bench.methods}
    while running:
        try:
            method, key, value = results.get(timeout=max(1, bench.left))
        except queue.Empty:
            yield 'ended early', sorted(running)
            return
        if key == 'accuracy':
            curves[method].append(value)
            yield method, dict(epochs=len(curves[method]), accuracy=value, curve=curves[method])
        elif key == 'failed':
            yield method, dict(failed=value)
            running.remove(method)
        elif key == 'done':
            running.remove(method)
        else:
            rates[method] = value
        if rates and {*rates} == running and not any(curves.values()):
            slowest = max(rates.values())
            epochs = max(1, int(0.9 * bench.left / slowest)) if bench.on_gpu else 1
            yield 'students', dict(epochs=epochs, seconds_of_an_epoch=rates)
            for _ in running:
                chosen.put(epochs)
            rates = {}


PARTS = dict(
    environment=environment,
    losses=losses,
    steps=steps,
    waits=waits,
    nccl=nccl,
    relations=relations,
    mamba=mamba,
    accuracy=accuracy,
)


def main() -> None:
    """Run all parts; exit with code 1 if one fails."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument('--out', type=Path, default=Path('work_dirs/gpu.json'))
    parser.add_argument('--data-root', type=Path, default=Path('data/cifar100'))
    parser.add_argument('--parts', nargs='*', choices=PARTS, default=[*PARTS])
    parser.add_argument('--methods', nargs='*', default=METHODS, help='methods of the accuracy run')
    parser.add_argument('--minutes', type=float, default=7.6, help='time limit, without imports')
    args = parser.parse_args()
    args.out.parent.mkdir(parents=True, exist_ok=True)
    init_default_scope('mldr_kd_mm')
    logging.disable(logging.WARNING)
    warnings.simplefilter('ignore')
    with tempfile.TemporaryDirectory() as folder:
        bench = Bench(
            args.out, Path(folder), args.data_root, tuple(args.methods), 60 * args.minutes
        )
        failed = bench.run({name: PARTS[name] for name in args.parts})
    if failed:
        sys.exit(f'failed: {", ".join(failed)}')


if __name__ == '__main__':
    main()

"""Find out under which settings a method diverges in its first steps.

    python benchmarks/stability.py --data images/2 images/10 --out rows.jsonl

Each combination of folder, student, method, batch size, learning rate and seed trains for a few
steps at a constant rate, without a warm-up, as a run of fewer than 8 epochs does. Everything else
is what ``distill`` trains: its recipe, scaled to the batch size and multiplied by --rates, its
augmentation and its method. The teacher is trained on the folder once. --out receives one JSON
line per run as soon as it ends; runs that it has already are not repeated.
"""

from __future__ import annotations

import argparse
import itertools
import json
import math
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import torch
import torch.nn.functional as F
from mmengine.config import Config
from mmengine.optim import build_optim_wrapper
from mmengine.registry import init_default_scope
from mmengine.runner import Runner, set_random_seed
from torch import Tensor, nn

from mldr_kd_mm.apis.options import parse_options
from mldr_kd_mm.apis.recipe import find_models, student_config, teacher_config
from mldr_kd_mm.apis.training_images import read_training_images
from mldr_kd_mm.engine.launch import set_loader_defaults
from mldr_kd_mm.registry import HOOKS, MODELS
from mldr_kd_mm.utils.logging import log_warnings_only

STUDENTS = (
    'resnet18',
    'mobilenetv2_100',
    'mobilenetv3_small_100',
    'efficientnet_b0',
    'convnext_tiny',
    'vit_tiny_patch16_224',
)
VARIED = ('data', 'student', 'method', 'batch_size', 'rate', 'seed')
SETTINGS = (*VARIED, 'steps', 'clip_grad', 'hooks')


class Heads:
    """Logits of the heads that the first loss of a Distiller compares, and their gradients."""

    def __init__(self, model: nn.Module) -> None:
        self.loss = model.losses[0].losses[0]
        self.loss.register_forward_pre_hook(self._keep)

    def _keep(self, loss: nn.Module, args: tuple) -> None:
        self.student, self.teacher = (tensor.detach() for tensor in args[:2])

    def measure(self, target: Tensor, own_loss: float) -> dict[str, Any]:
        """Return the size of the logits, the losses and the norms of their gradients there."""
        heads = self.student.reshape(-1, *self.student.shape[-2:])
        measured = dict(
            logits=_rounded(heads.norm(dim=(1, 2)) / math.sqrt(heads[0].numel())),
            own_loss=own_loss,
        )
        with torch.enable_grad():
            final = heads[0].clone().requires_grad_()
            smoothed = F.cross_entropy(final, target, label_smoothing=0.1)
            measured['own_gradient'] = _norm_of_gradient(smoothed, final)
            if hasattr(self.loss, 'terms'):
                for name in ('class_relation', 'sample_relation', 'probability'):
                    value = self.loss.terms(final, self.teacher, [name])[name]
                    measured[name] = value.item()
                    measured[f'{name}_gradient'] = _norm_of_gradient(value, final)
        return measured


def train(cfg: Config, steps: int, seed: int) -> tuple[nn.Module, dict[str, Any]]:
    """Train for some steps at a constant rate, and stop at the first that is not finite.

    Returns:
        The model, and the results: the number of finite steps, whether the run diverged, and the
        measurements of the first and of the last finite step.
    """
    set_random_seed(seed)
    cfg.model.setdefault('data_preprocessor', cfg.data_preprocessor)
    set_loader_defaults(cfg.train_dataloader)
    loader = Runner.build_dataloader(cfg.train_dataloader, seed=seed)
    model = MODELS.build(cfg.model)
    model.init_weights()
    model.train()
    wrapper = build_optim_wrapper(model, cfg.optim_wrapper)
    for hook in cfg.get('custom_hooks', ()):
        HOOKS.build(hook).before_train(SimpleNamespace(optim_wrapper=wrapper))
    heads = Heads(model) if hasattr(model, 'losses') else None
    found: dict[str, Any] = dict(finite_steps=0, diverged=False)
    for step, batch in enumerate(itertools.islice(_endless(loader), steps)):
        batch = model.data_preprocessor(batch, True)
        total, values = model.parse_losses(model(**batch, mode='loss'))
        if not total.isfinite():
            found['diverged'] = True
            break
        wrapper.update_params(total)
        found['finite_steps'] = step + 1
        if heads is not None:
            target = torch.cat([sample.gt_label for sample in batch['data_samples']])
            measured = heads.measure(target, values['loss_student'].item())
            found.setdefault('first', measured)
            found['last'] = measured
    return model, found


@torch.no_grad()
def accuracy(cfg: Config, model: nn.Module) -> float:
    """Return the top-1 accuracy on the validation images, in percent."""
    set_loader_defaults(cfg.val_dataloader)
    loader = Runner.build_dataloader(cfg.val_dataloader)
    model.eval()
    right = total = 0
    for batch in loader:
        for sample in model.val_step(batch):
            right += int(sample.pred_label == sample.gt_label)
            total += 1
    return 100 * right / total


def make_configs(args: argparse.Namespace, row: dict[str, Any]) -> tuple[Config, Config]:
    """Return the configs of a student's and of its teacher's training."""
    options = parse_options(
        args.teacher,
        row['student'],
        row['data'],
        row['method'],
        image_size=args.image_size,
        batch_size=row['batch_size'],
        seed=row['seed'],
        workers=0,
        amp=False,
        clip_grad=row['clip_grad'],
    )
    images = read_training_images(options)
    models = find_models(options, images.num_classes)
    cfg = student_config(options, images, *models)
    cfg.optim_wrapper.optimizer.lr *= row['rate']
    if not row['hooks']:
        cfg.pop('custom_hooks', None)
    return cfg, teacher_config(options, images, models[0], cfg)


def find_teacher(args: argparse.Namespace, row: dict[str, Any], cfg: Config) -> str:
    """Return the path of the folder's teacher, which is trained if it does not exist."""
    path = Path(args.out).with_name(f'teacher_{Path(row["data"]).name}.pth')
    if not path.is_file():
        cfg.optim_wrapper.optimizer.lr = args.teacher_lr
        model, _ = train(cfg, args.teacher_steps, seed=0)
        print(f'teacher of {row["data"]}: {accuracy(cfg, model):.1f} %', flush=True)
        torch.save(dict(state_dict=model.state_dict()), path)
    return str(path)


def run(args: argparse.Namespace, row: dict[str, Any]) -> dict[str, Any]:
    """Train a student and return its row."""
    with log_warnings_only():
        cfg, of_teacher = make_configs(args, row)
        cfg.model.teacher_checkpoint = find_teacher(args, row, of_teacher)
        model, found = train(cfg, row['steps'], row['seed'])
        if args.evaluate and not found['diverged']:
            found['accuracy'] = accuracy(cfg, model)
    return row | found


def main() -> None:
    """Run all combinations that are not in the file of rows yet."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    add = parser.add_argument
    add('--data', nargs='+', required=True, metavar='FOLDER', help='folders of images')
    add('--students', nargs='+', default=STUDENTS)
    add('--methods', nargs='+', default=['mldr'])
    add('--batch-sizes', nargs='+', type=int, default=[32])
    add('--rates', nargs='+', type=float, default=[1.0], help="factors of the recipe's rate")
    add('--seeds', nargs='+', type=int, default=[0])
    add('--steps', type=int, default=40)
    add('--clip-grad', type=float, help='norm to which gradients are clipped')
    add(
        '--no-hooks',
        action='store_true',
        help='leave out the AdaptiveClipHook that distill() adds for CNNs',
    )
    add('--image-size', type=int, default=32)
    add('--teacher', default='resnet18_32px')
    add('--teacher-lr', type=float, default=0.05)
    add('--teacher-steps', type=int, default=300)
    add('--evaluate', action='store_true', help='measure the accuracy after the last step')
    add('--out', required=True, help='file of JSON lines')
    args = parser.parse_args()
    torch.set_num_threads(1)
    init_default_scope('mldr_kd_mm')
    import mldr_kd_mm.apis  # noqa: F401  registers every module of the package

    out = Path(args.out)
    out.parent.mkdir(parents=True, exist_ok=True)
    done = [json.loads(line) for line in out.read_text().splitlines()] if out.is_file() else []
    known = {tuple(row[name] for name in SETTINGS) for row in done}
    grid = (args.data, args.students, args.methods, args.batch_sizes, args.rates, args.seeds)
    for values in itertools.product(*grid):
        values = (*values, args.steps, args.clip_grad, not args.no_hooks)
        if values in known:
            continue
        row = run(args, dict(zip(SETTINGS, values, strict=True)))
        print(describe(row), flush=True)
        with out.open('a') as file:
            file.write(json.dumps(row) + '\n')
        done.append(row)
    print(table(done))


def describe(row: dict[str, Any]) -> str:
    """Return a line that describes a run."""
    last = row.get('last', {})
    settings = ' '.join(f'{name}={row[name]}' for name in SETTINGS)
    measured = ' '.join(f'{name}={value}' for name, value in last.items())
    return f'{settings}: {_outcome(row)}; at the last finite step {measured}'


def table(rows: list[dict[str, Any]]) -> str:
    """Return a Markdown table: a line per method, folder, batch size and rate."""
    students = [name for name in STUDENTS if any(row['student'] == name for row in rows)]
    students += sorted({row['student'] for row in rows} - {*students})
    heading = ['Method', 'Clipping', 'Folder', 'Batch', 'Rate', *students]
    lines = [heading, [':-'] * len(heading)]
    settings = ('method', 'clip_grad', 'hooks', 'data', 'batch_size', 'rate')
    found: dict[tuple, dict[str, list[str]]] = {}
    for row in rows:
        cells = found.setdefault(tuple(row[name] for name in settings), {})
        cells.setdefault(row['student'], []).append(_outcome(row))
    for (method, clip, hooks, data, batch, rate), cells in found.items():
        outcomes = [', '.join(cells.get(student, [])) for student in students]
        clipping = f'norm {clip:g}' if clip else 'default' if hooks else 'none for CNNs'
        lines.append([method, clipping, Path(data).name, f'{batch}', f'{rate:g}', *outcomes])
    return '\n'.join(f'| {" | ".join(line)} |' for line in lines)


def _outcome(row: dict[str, Any]) -> str:
    if row['diverged']:
        return f'diverged at step {row["finite_steps"] + 1}'
    accuracy = f', {row["accuracy"]:.1f} %' if 'accuracy' in row else ''
    return f'{row["finite_steps"]} steps{accuracy}'


def _endless(loader: Any) -> Iterator[dict]:
    for epoch in itertools.count():
        loader.sampler.set_epoch(epoch)
        yield from loader


def _norm_of_gradient(value: Tensor, at: Tensor) -> float:
    return torch.autograd.grad(value.sum(), at)[0].norm().item()


def _rounded(values: Tensor) -> list[float]:
    return [float(f'{value:.3g}') for value in values]


if __name__ == '__main__':
    main()

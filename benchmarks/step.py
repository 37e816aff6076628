"""Measure a training step of MLDR-KD against a step of the student alone.

python benchmarks/step.py

The paper's setting, Swin-T to ResNet18 on CIFAR-100 at 224 px, with random weights, random images
and a small batch. A step is forward, losses, backward and optimizer, with a live teacher or with a
warm cache of its logits. All variants alternate in one run, so that other load on the machine slows
all of them. Time is CPU time. --profile prints the operators of a step with a warm cache.
"""

from __future__ import annotations

import argparse
import os
import platform
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import torch
from mmengine.config import Config
from mmengine.optim import build_optim_wrapper
from mmengine.registry import init_default_scope
from mmpretrain.structures import DataSample
from torch.profiler import profile

from mldr_kd_mm.models.distillers.teacher_cache import TeacherCache
from mldr_kd_mm.registry import MODELS
from mldr_kd_mm.structures.view import View

CONFIGS = Path(__file__).resolve().parents[1] / 'configs'
CACHED_TARGET, LIVE_TARGET = 1.15, 1.10
Step = Callable[[], object]


def build(name: str) -> tuple[torch.nn.Module, Step]:
    """Build a config's model and a function that trains it for a step on ``model.batch``."""
    cfg = Config.fromfile(CONFIGS / f'{name}.py')
    cfg.model.setdefault('data_preprocessor', cfg.data_preprocessor)
    if 'teacher' in cfg.model:
        cfg.model.teacher_checkpoint = None
    model = MODELS.build(cfg.model).train()
    wrapper = build_optim_wrapper(model, cfg.optim_wrapper)
    return model, lambda: model.train_step(model.batch, wrapper)


def make_batch(size: int, num_classes: int = 100) -> dict:
    """Return random images and labels in the format of a data loader."""
    images = torch.randint(0, 256, (size, 3, 224, 224), dtype=torch.uint8)
    samples = []
    for index, label in enumerate(torch.randint(0, num_classes, (size, 1))):
        sample = DataSample().set_gt_label(label)
        sample.set_field(View(0, 0, index), 'view', field_type='metainfo')
        samples.append(sample)
    return dict(inputs=images, data_samples=samples)


def medians(steps: dict[str, Step], repeats: int) -> dict[str, float]:
    """Return the median CPU milliseconds of each step; the steps alternate."""
    taken = {name: [] for name in steps}
    for repeat in range(repeats + 1):
        for name, step in steps.items():
            start = time.process_time()
            step()
            if repeat:  # the first one is the warm-up
                taken[name].append(time.process_time() - start)
    return {name: 1e3 * statistics.median(times) for name, times in taken.items()}


def main() -> None:
    """Print the times of all steps and the targets."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument('--batch-size', type=int, default=8)
    parser.add_argument('--repeats', type=int, default=5, help='at least 5 for a fair median')
    parser.add_argument('--pair', default='swin-tiny_to_resnet18_c100')
    parser.add_argument('--alone', default='resnet18_c100', help='the same student in scratch/')
    parser.add_argument('--profile', action='store_true')
    args = parser.parse_args()
    torch.set_num_threads(1)
    torch.manual_seed(0)
    init_default_scope('mldr_kd_mm')

    alone, step_alone = build(f'scratch/{args.alone}')
    distiller, step_distilled = build(f'mldr/{args.pair}')
    alone.batch = distiller.batch = make_batch(args.batch_size)
    images = distiller.data_preprocessor(distiller.batch, True)['inputs']
    fingerprint = dict(views=1, samples=args.batch_size, dtype='fp32')

    with tempfile.TemporaryDirectory() as folder:
        cache = TeacherCache(folder, fingerprint, dict(logits=dict(tap='logits', shape=[100])))

        def step_with(teacher_cache: TeacherCache | None) -> Step:
            def step() -> None:
                distiller.teacher.cache = teacher_cache
                step_distilled()

            return step

        steps = {
            'student alone': step_alone,
            'teacher forward': lambda: distiller.run_teacher(images),
            'MLDR-KD, cached': step_with(cache),
            'MLDR-KD, live': step_with(None),
        }
        ms = medians(steps, args.repeats)
        if args.profile:
            with profile() as record:
                steps['MLDR-KD, cached']()
            print(record.key_averages().table('self_cpu_time_total', row_limit=15))
    print(
        f'{platform.machine()}, {os.cpu_count()} cores, torch {torch.__version__}, 1 thread; '
        f'{args.pair}, 224 px, batch {args.batch_size}, {args.repeats} repeats'
    )
    for name, median in ms.items():
        print(f'{name:16}{median:10.0f} ms')
    cached = ms['MLDR-KD, cached'] / ms['student alone']
    live = ms['MLDR-KD, live'] / (ms['student alone'] + ms['teacher forward'])
    print(f'step with a warm cache / student alone: {cached:.2f}, target <= {CACHED_TARGET}')
    print(f'step with a live teacher / (student + teacher): {live:.2f}, target <= {LIVE_TARGET}')


if __name__ == '__main__':
    main()

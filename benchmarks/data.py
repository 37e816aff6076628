"""Images a second that one core makes of CIFAR-100 at 224 px, beside mmpretrain's own pipeline.

python benchmarks/data.py

From the image in memory through the collated uint8 batch, as a loader's worker does it; normalising
is the device's. Both sides make the same images, which is checked, and take turns in one run, so
that other work on the machine slows both. A core's second is one of the process's time.
"""

from __future__ import annotations

import argparse
import os
import platform
import random
import statistics
import time
from pathlib import Path

import cv2
import numpy as np
import torch
from mmengine.config import Config
from mmengine.dataset import BaseDataset, default_collate
from torch import Tensor

from mldr_kd_mm.datasets import VerifiedCIFAR100

TARGET_RATIO = 2
BASES = Path(__file__).resolve().parents[1] / 'configs' / '_base_' / 'datasets'
SIDES = ('ours', 'mmpretrain')


class Pickled(VerifiedCIFAR100):
    """The images as mmengine keeps them."""

    _serialize_data = BaseDataset._serialize_data
    get_data_info = BaseDataset.get_data_info


def mmpretrains(step: dict) -> list[dict]:
    """The steps of mmpretrain's that a step of ours stands for."""
    step = dict(step)
    if step['type'] == 'PackPlanes':
        return [dict(step, type='PackInputs')]
    if step['type'] == 'RandomResizedCropFlip':
        flip = dict(type='RandomFlip', prob=step.pop('flip_prob'), direction='horizontal')
        return [dict(step, type='RandomResizedCrop'), flip]
    return [step]


def build(loader: dict, data_root: str) -> dict[str, VerifiedCIFAR100]:
    """Both sides of one loader's data set."""
    pipeline = loader.dataset.pipeline
    options = dict(data_root=data_root, split=loader.dataset.split, verify=False, download=False)
    theirs = [each for step in pipeline for each in mmpretrains(step)]
    sides = (VerifiedCIFAR100(pipeline=pipeline, **options), Pickled(pipeline=theirs, **options))
    return dict(zip(SIDES, sides, strict=True))


def make(dataset: VerifiedCIFAR100, batches: np.ndarray, seed: int) -> tuple[float, float, Tensor]:
    """Seconds of the process and of the clock that ``batches`` take, and the last one's images."""
    random.seed(seed)
    np.random.seed(seed)
    cpu, wall = time.process_time(), time.perf_counter()
    for indices in batches:
        batch = default_collate([dataset[index] for index in indices.tolist()])
    return time.process_time() - cpu, time.perf_counter() - wall, batch['inputs']


def compare(
    sides: dict[str, VerifiedCIFAR100], batches: np.ndarray, repeats: int
) -> dict[str, list]:
    """Median images a second of each side, ``[of a core, by the clock]``."""
    seconds = {name: [] for name in sides}
    for repeat in range(repeats + 1):
        images = {}
        for name, dataset in sides.items():
            *spent, images[name] = make(dataset, batches, seed=repeat)
            if repeat:  # the first one warms up
                seconds[name].append(spent)
        assert torch.equal(*images.values()), 'the two sides make different images'
    return {
        name: [batches.size / statistics.median(column) for column in zip(*rows, strict=True)]
        for name, rows in seconds.items()
    }


def main() -> None:
    """Print both sides and the target."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument('--data-root', default='data/cifar100', help='holds cifar-100-python/')
    parser.add_argument('--batch-size', type=int, default=128)
    parser.add_argument('--batches', type=int, default=4, help='in each repeat')
    parser.add_argument('--repeats', type=int, default=7, help='at least 5 for a fair median')
    args = parser.parse_args()
    torch.set_num_threads(1)
    cv2.setNumThreads(0)  # as the configs set it for workers

    cfg, strong = (Config.fromfile(BASES / f'cifar100_224{x}.py') for x in ('', '_strong'))
    loaders = {
        'train': cfg.train_dataloader,
        'train, strong': strong.train_dataloader,
        'test': cfg.val_dataloader,
    }
    print(
        f'{platform.machine()}, {os.cpu_count()} cores, torch {torch.__version__}, OpenCV '
        f'{cv2.__version__}, 1 thread; {args.batches} batches of {args.batch_size}, '
        f'{args.repeats} repeats'
    )
    print(f'{"images/s of a core":20}{"ours":>8}{"mmpretrain":>12}{"ratio":>8}{"by the clock":>14}')
    ratios = {}
    for name, loader in loaders.items():
        sides = build(loader, args.data_root)
        order = np.random.default_rng(0).permutation(len(sides['ours']))
        batches = order[: args.batches * args.batch_size].reshape(args.batches, args.batch_size)
        (core, clock), (their_core, their_clock) = compare(sides, batches, args.repeats).values()
        ratio, by_clock = core / their_core, clock / their_clock
        print(f'{name:20}{core:8.0f}{their_core:12.0f}{ratio:7.2f}x{by_clock:13.2f}x')
        ratios[name] = ratio
    print(
        f'images of CIFAR-100 at 224 px, train: {ratios["train"]:.2f}x, target >= {TARGET_RATIO}x'
    )


if __name__ == '__main__':
    main()

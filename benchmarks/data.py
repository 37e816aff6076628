"""Measure the throughput of the data pipeline against mmpretrain's, for CIFAR-100 at 224 px.

python benchmarks/data.py

One core turns images in memory into collated uint8 batches, as a data-loader worker does;
normalisation happens on the device. Both pipelines make the same images, which is checked, and
alternate in one run, so that other load on the machine slows both. Time is CPU time.
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
    """The data set as mmengine stores it, with pickled images."""

    _serialize_data = BaseDataset._serialize_data
    get_data_info = BaseDataset.get_data_info


def mmpretrain_steps(step: dict) -> list[dict]:
    """Return mmpretrain's transforms that a transform of this project replaces."""
    step = dict(step)
    if step['type'] == 'PackPlanes':
        return [dict(step, type='PackInputs')]
    if step['type'] == 'RandomResizedCropFlip':
        flip = dict(type='RandomFlip', prob=step.pop('flip_prob'), direction='horizontal')
        return [dict(step, type='RandomResizedCrop'), flip]
    return [step]


def build(loader: dict, data_root: str) -> dict[str, VerifiedCIFAR100]:
    """Build a loader's data set with both pipelines."""
    pipeline = loader.dataset.pipeline
    options = dict(data_root=data_root, split=loader.dataset.split, verify=False, download=False)
    theirs = [each for step in pipeline for each in mmpretrain_steps(step)]
    sides = (VerifiedCIFAR100(pipeline=pipeline, **options), Pickled(pipeline=theirs, **options))
    return dict(zip(SIDES, sides, strict=True))


def make(dataset: VerifiedCIFAR100, batches: np.ndarray, seed: int) -> tuple[float, float, Tensor]:
    """Make batches; return CPU seconds, wall-clock seconds and the images of the last batch."""
    random.seed(seed)
    np.random.seed(seed)
    cpu, wall = time.process_time(), time.perf_counter()
    for indices in batches:
        batch = default_collate([dataset[index] for index in indices.tolist()])
    return time.process_time() - cpu, time.perf_counter() - wall, batch['inputs']


def compare(
    sides: dict[str, VerifiedCIFAR100], batches: np.ndarray, repeats: int
) -> dict[str, list]:
    """Return the median images per second of each side, by CPU time and by wall-clock time."""
    seconds = {name: [] for name in sides}
    for repeat in range(repeats + 1):
        images = {}
        for name, dataset in sides.items():
            *spent, images[name] = make(dataset, batches, seed=repeat)
            if repeat:  # the first one is the warm-up
                seconds[name].append(spent)
        assert torch.equal(*images.values()), 'the two pipelines make different images'
    return {
        name: [batches.size / statistics.median(column) for column in zip(*rows, strict=True)]
        for name, rows in seconds.items()
    }


def main() -> None:
    """Print the throughput of both pipelines and the target."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument(
        '--data-root', default='data/cifar100', help='directory with cifar-100-python/'
    )
    parser.add_argument('--batch-size', type=int, default=128)
    parser.add_argument('--batches', type=int, default=4, help='batches per repeat')
    parser.add_argument('--repeats', type=int, default=7, help='at least 5 for a fair median')
    args = parser.parse_args()
    torch.set_num_threads(1)
    cv2.setNumThreads(0)  # as in the workers

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
    print(f'{"images/s per core":20}{"ours":>8}{"mmpretrain":>12}{"ratio":>8}{"wall clock":>14}')
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

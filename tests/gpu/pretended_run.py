"""A few steps of mmengine's real Runner on the pretended GPU."""

from __future__ import annotations

import copy
from pathlib import Path

import numpy as np
from mmengine.config import Config
from mmengine.hooks import Hook
from mmengine.registry import RUNNERS
from mmengine.runner import Runner
from mmpretrain.datasets import BaseDataset
from pretended import PretendedGPU, Step

from mldr_kd_mm.engine.launch import fit_to_machine
from mldr_kd_mm.registry import DATASETS

# The parts of a training step besides the student, and where their code is.
PARTS = dict(
    hooks=['/engine/hooks/', '/mmengine/hooks/'],
    teacher=['/distillers/teacher'],
    neck=['/mldr_kd_mm/models/necks/'],
    losses=['/mldr_kd_mm/models/losses/', '/distillers/loss_entry'],
    inputs=['data_preprocessor.py'],
    optimizer=['/torch/optim/', '/mmengine/optim/'],
)


@DATASETS.register_module()
class RandomImages(BaseDataset):
    """Random images of 32 px with labels.

    Args:
        num_images: Number of images.
        num_classes: Number of classes.
        **kwargs: ``pipeline`` and the other arguments of mmpretrain's BaseDataset.
    """

    def __init__(self, num_images: int, num_classes: int = 100, **kwargs) -> None:
        self.num_images, self.num_classes = num_images, num_classes
        super().__init__(
            ann_file='', metainfo=dict(classes=[*map(str, range(num_classes))]), **kwargs
        )

    def load_data_list(self) -> list[dict]:
        """Return one ``{'img': uint8 (32, 32, 3), 'gt_label': int}`` per image."""
        random = np.random.default_rng(0)
        shape = (self.num_images, 32, 32, 3)
        images = random.integers(0, 256, shape, dtype=np.uint8)
        return [dict(img=img, gt_label=i % self.num_classes) for i, img in enumerate(images)]


class _Enough(Exception):
    """Enough steps were run."""


class StepHook(Hook):
    """Starts a step of the GPU before each iteration, and ends the run after some.

    Args:
        gpu: The GPU.
        steps: Number of iterations.
    """

    priority = 0  # before all others

    def __init__(self, gpu: PretendedGPU, steps: int) -> None:
        self.gpu, self.steps = gpu, steps

    def before_train_iter(self, runner: Runner, batch_idx: int, data_batch=None) -> None:
        self.gpu.start_step()
        if runner.iter == self.steps:
            raise _Enough


def run_steps(
    cfg: Config,
    gpu: PretendedGPU,
    work_dir: Path,
    steps: int = 4,
    batch_size: int = 2,
    num_workers: int = 0,
) -> list[Step]:
    """Train on random images with a config's models, pipeline, losses and hooks.

    Args:
        cfg: The config of a run, without weights of a teacher.
        gpu: The GPU, whose context is entered.
        work_dir: The work directory.
        steps: Number of iterations.
        batch_size: Images per batch.
        num_workers: Processes that load images.

    Returns:
        What the GPU did in each iteration, up to the beginning of the next one.
    """
    cfg = copy.deepcopy(cfg)
    loader = cfg.train_dataloader
    loader.batch_size, loader.num_workers = batch_size, num_workers
    loader.dataset = dict(
        type='RandomImages', num_images=batch_size * (steps + 2), pipeline=loader.dataset.pipeline
    )
    if 'teacher' in cfg.model:
        cfg.model.teacher_checkpoint = None
    for name in ('val', 'test'):
        for field in ('dataloader', 'cfg', 'evaluator'):
            cfg[f'{name}_{field}'] = None
    for name in ('teacher_accuracy', 'figures', 'progress', 'chance'):
        cfg.default_hooks.pop(name, None)
    cfg.default_hooks.checkpoint.save_best = None
    cfg.work_dir, cfg.launcher, cfg.experiment_name = str(work_dir), 'none', work_dir.name
    cfg.log_level = 'ERROR'
    fit_to_machine(cfg)
    runner = RUNNERS.build(cfg)
    runner.register_hook(StepHook(gpu, steps))
    try:
        runner.train()
    except _Enough:
        return gpu.steps[-steps - 1 : -1]
    raise RuntimeError(f'the run ended before step {steps}')

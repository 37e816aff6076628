"""Distil features without labels on CIFAR-100, and measure them before and after.

    python benchmarks/embed.py --teacher teacher/epoch_40.pth --out embed.jsonl

The teacher was trained on 20 classes (configs/teachers/resnet18_cifar100-20cls.py) and is used
without its head. The student, the ViT of configs/pairs/resnet18_to_vit_cifar100-20cls.py
without a head, learns with --method embed. Labels are only used to measure the kNN accuracy,
with the 20 nearest training images. --out receives one JSON line per seed as soon as it ends; seeds
that it already has are not repeated, and an interrupted run continues.
"""

from __future__ import annotations

import argparse
import json
import time
from pathlib import Path

import torch
from mmengine.config import DictAction
from mmengine.hooks import Hook
from mmengine.runner import Runner
from mmengine.utils import get_git_hash

import mldr_kd_mm.apis  # noqa: F401  registers every module of the package
from mldr_kd_mm.apis.configs import config_path, load_config
from mldr_kd_mm.engine.launch import fit_to_machine, start
from mldr_kd_mm.evaluation.logged_run import ACCURACY
from mldr_kd_mm.registry import HOOKS
from mldr_kd_mm.utils.dist import unwrap_model

PAIR = 'pairs/resnet18_to_vit_cifar100-20cls.py'
BEFORE = 'accuracy_before'


@HOOKS.register_module()
class BeforeHook(Hook):
    """Measures the student before its first step, and keeps the accuracy in the checkpoints."""

    priority = 'LOWEST'

    def before_train(self, runner: Runner) -> None:
        """Measure the student unless the run was resumed."""
        if runner.iter > 0:
            return
        loop, model = runner.val_loop, unwrap_model(runner.model).eval()
        with torch.random.fork_rng(devices=[]), torch.no_grad():
            predict = loop.fit(model.data_preprocessor, model.embed)
            for batch in loop.dataloader:
                loop.evaluator.process(data_samples=predict(batch), data_batch=batch)
        metrics = loop.evaluator.evaluate(len(loop.dataloader.dataset))
        runner.message_hub.update_info(BEFORE, metrics[ACCURACY])


def main() -> None:
    """Train the missing seeds."""
    parser = argparse.ArgumentParser(description=__doc__.partition('\n')[0])
    parser.add_argument('--teacher', required=True, help="checkpoint of the teacher's run")
    parser.add_argument('--out', required=True, type=Path, help='file of JSON lines')
    parser.add_argument('--seeds', nargs='+', type=int, default=[0, 1, 2])
    parser.add_argument('--epochs', type=int, default=40)
    parser.add_argument('--per-class', type=int, default=200, help='training images per class')
    parser.add_argument('--work-dir', type=Path, default=Path('work_dirs/embed'))
    parser.add_argument('--cfg-options', nargs='+', action=DictAction, default={})
    args = parser.parse_args()
    rows = args.out.read_text().splitlines() if args.out.is_file() else []
    done = {json.loads(row)['seed'] for row in rows}
    for seed in args.seeds:
        if seed in done:
            continue
        row = run(seed, args)
        with open(args.out, 'a') as file:
            file.write(json.dumps(row) + '\n')


def run(seed: int, args: argparse.Namespace) -> dict:
    """Train one student and return what was measured."""
    cfg = load_config(config_path(PAIR), 'embed')
    cosine = cfg.param_scheduler[1]
    cosine.update(end=args.epochs, T_max=args.epochs - cosine.begin - 1)
    cfg.merge_from_dict(
        {
            'model.teacher_checkpoint': args.teacher,
            'train_dataloader.dataset.subset.per_class': args.per_class,
            'train_cfg.max_epochs': args.epochs,
            'randomness.seed': seed,
            'work_dir': str(args.work_dir / f'seed{seed}'),
            'custom_hooks': [dict(type='BeforeHook')],
            **args.cfg_options,
        }
    )
    cfg.experiment_name = f'embed_seed{seed}'
    cfg.resume = any(Path(cfg.work_dir).glob('epoch_*.pth'))
    fit_to_machine(cfg)
    begin = time.process_time()
    hub = start(cfg, 'train').message_hub
    history = hub.log_scalars[f'val/{ACCURACY}'].data[0]
    return dict(
        seed=seed,
        before=round(float(hub.get_info(BEFORE)), 2),
        after=round(float(history[-1]), 2),
        teacher=round(float(hub.get_info('teacher_metrics')[ACCURACY]), 2),
        epochs=args.epochs,
        images=20 * args.per_class,
        cpu_seconds=round(time.process_time() - begin),
        commit=get_git_hash(digits=7),
    )


if __name__ == '__main__':
    main()

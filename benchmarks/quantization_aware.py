"""INT8 accuracy of the quickstart's student, with and without quantisation-aware distillation.

    python benchmarks/quantization_aware.py

This trains the quickstart's teacher once, then for each seed MLDR-KD as in
configs/quickstart/mldr.py, and the same with rounding in the last epochs. Both students are
exported to INT8. Ten minutes on one core; a run that is there already is not repeated.
"""

from __future__ import annotations

import argparse
from pathlib import Path
from statistics import mean

import torch
from mmengine.config import Config
from PIL import Image

from mldr_kd_mm.apis.configs import load_config
from mldr_kd_mm.apis.export import export_student
from mldr_kd_mm.datasets import Digits
from mldr_kd_mm.engine.launch import fit_to_machine, start
from mldr_kd_mm.utils.logging import quiet_console

CONFIGS = Path(__file__).parents[1] / 'configs/quickstart'


def train(
    config: str, work_dir: Path, seed: int = 0, begin: int | None = None, **fields: str
) -> str:
    """Train a config, unless that has been done, and return its last checkpoint."""
    cfg = load_config(str(CONFIGS / config), None)
    cfg.merge_from_dict(dict(work_dir=str(work_dir), randomness=dict(seed=seed), **fields))
    cfg.experiment_name = work_dir.name
    if begin is not None:
        rounding = dict(type='QuantizationAwareHook', begin=begin)
        cfg.custom_hooks = [*cfg.get('custom_hooks', []), rounding]
    last = work_dir / f'epoch_{cfg.train_cfg.max_epochs}.pth'
    if not last.is_file():
        fit_to_machine(cfg)
        with quiet_console():
            start(Config(cfg.to_dict()), 'train')
    return str(last)


def write_digits(folder: Path) -> str:
    """Write training images to calibrate with, in folders of their classes."""
    dataset = Digits('train', size=16, subset=dict(per_class=25))
    for index in range(len(dataset)):
        info = dataset.get_data_info(index)
        path = folder / str(info['gt_label']) / f'{index}.png'
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(info['img']).save(path)
    return str(folder)


def main() -> None:
    """Print a table of fp32 and INT8 accuracies."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument('--seeds', nargs='+', type=int, default=[0, 1, 2])
    parser.add_argument('--begin', type=int, default=60, help='epochs before the rounding starts')
    parser.add_argument('--out', default='work_dirs/quantization_aware', help='folder of the runs')
    args = parser.parse_args()
    torch.set_num_threads(1)
    out = Path(args.out)
    images = write_digits(out / 'digits')
    teacher = train('teacher.py', out / 'teacher')
    rows = []
    for seed in args.seeds:
        row = []
        for name, begin in (('plain', None), ('aware', args.begin)):
            work_dir = out / f'{name}_{seed}'
            fields = {'model.teacher_checkpoint': teacher}
            checkpoint = train('mldr.py', work_dir, seed, begin, **fields)
            graph = work_dir / 'int8.onnx'
            for path in (graph, graph.with_suffix('.md')):
                path.unlink(missing_ok=True)
            exported = export_student(
                checkpoint, str(graph), int8=True, calibrate=images, max_drop=100
            )
            print(f'seed {seed}, {name}: {exported.files[graph]}', flush=True)
            row += [exported.int8.accuracy, exported.int8.int8_accuracy]
        rows.append(row)
    print('| Seed | fp32 | INT8 | fp32, quantisation-aware | INT8, quantisation-aware |')
    print('|---|--:|--:|--:|--:|')
    rows.append([mean(column) for column in zip(*rows, strict=True)])
    for seed, row in zip([*args.seeds, 'mean'], rows, strict=True):
        print(f'| {seed} | ' + ' | '.join(f'{value:.2f}' for value in row) + ' |')


if __name__ == '__main__':
    main()

"""Compare random entries of a teacher cache with the teacher's current outputs.

    python tools/analysis_tools/check_teacher_cache.py CONFIG [--samples N] [--cfg-options ...]

CONFIG is the config of a run that uses the cache, whose folder it sets in
default_hooks.teacher_cache.dir. The cache is not changed. The exit code is 1 if an entry differs by
more than a thousandth of the largest value.
"""

import math
import sys
import tempfile
from argparse import ArgumentParser, Namespace, RawDescriptionHelpFormatter
from pathlib import Path

import numpy as np
import torch
from mmengine.config import Config
from mmengine.hooks import Hook
from mmengine.runner import Runner

from mldr_kd_mm.apis.configs import load_config
from mldr_kd_mm.engine.arguments import add_arguments, apply_arguments
from mldr_kd_mm.engine.preflight import preflight
from mldr_kd_mm.models.distillers.teacher_cache import FINGERPRINT
from mldr_kd_mm.utils.dist import unwrap_model
from mldr_kd_mm.utils.errors import ConfigError, check_positive, one_line_for
from mldr_kd_mm.utils.nested import as_list

TOLERANCE = 1e-3
"""Allowed error relative to the largest value.

Rounding to half precision causes at most half of it, and another device far less.
"""


class Compare(Hook):
    """Compares entries after TeacherCacheHook has opened the cache.

    Args:
        samples: Number of samples to compare, spread over all views.
    """

    priority = 'LOWEST'

    def __init__(self, samples: int) -> None:
        self.samples = samples
        self.compared = 0
        self.errors: dict[str, float] = {}
        """Name -> largest error, relative to the largest value."""

    @torch.no_grad()
    def before_train(self, runner: Runner) -> None:
        """Compare batches in random order until enough samples have been compared."""
        sampler = runner.train_dataloader.batch_sampler.sampler
        random = np.random.default_rng()
        for epoch in random.permutation(sampler.views).tolist():
            sampler.set_epoch(epoch)
            batches = list(runner.train_dataloader.batch_sampler)
            enough = self.compared + math.ceil(self.samples / sampler.views)
            for number in random.permutation(len(batches)):
                if self.compared >= min(enough, self.samples):
                    break
                self._compare(runner, batches[number])

    def _compare(self, runner: Runner, indices: list) -> None:
        model = unwrap_model(runner.model)
        views = [index.view for index in indices]
        caches = {label: teacher.cache for label, teacher, _ in model.teachers if teacher.cache}
        found = {
            name if label == 'teacher' else f'{label}.{name}': values
            for label, cache in caches.items()
            for name, values in cache.read(views).items()
        }
        if any(values is None for values in found.values()):
            return
        loader = runner.train_dataloader
        data = loader.collate_fn(loader.dataset.__getitems__(indices))
        inputs = model.data_preprocessor(data, True)['inputs']
        with runner.optim_wrapper.optim_context(model):
            exact = model.teacher(inputs, found)
        for name, values in found.items():
            expected = model.teacher.cache.as_stored(name, exact[name])
            error = (values.float() - expected).abs().max() / expected.abs().max()
            self.errors[name] = max(self.errors.get(name, 0.0), error.item())
        self.compared += len(indices)


def parse_args(argv: list[str] | None = None) -> Namespace:
    """Return the parsed command line."""
    parser = ArgumentParser(description=__doc__, formatter_class=RawDescriptionHelpFormatter)
    parser.add_argument('config', help='config of a run that uses the cache')
    parser.add_argument(
        '--samples', type=int, default=256, help='number of samples to compare; default: 256'
    )
    add_arguments(parser)
    return parser.parse_args(argv)


def prepare(cfg: Config, work_dir: str) -> None:
    """Change the config of a run so that the run ends before its first training step."""
    folder = cfg.get('default_hooks', {}).get('teacher_cache', {}).get('dir')
    folders = [Path(each) for each in as_list(folder) if each is not None]
    # The caches of several teachers may be subfolders.
    caches = [path for each in folders for path in (each, *each.glob('teacher*'))]
    if not any(Path(path, FINGERPRINT).is_file() for path in caches):
        raise ConfigError(
            f'default_hooks.teacher_cache.dir={folder!r}: must be the folder of a teacher cache'
        )
    cfg.train_cfg.pop('type', None)
    cfg.train_cfg.update(by_epoch=True, max_epochs=0)
    cfg.val_cfg = cfg.val_dataloader = cfg.val_evaluator = None
    cfg.update(work_dir=work_dir, log_level='WARNING', resume=False, visualizer=None)
    # mmengine reuses the visualizer of an earlier Runner of this name, whose folder is gone.
    cfg.experiment_name = Path(work_dir).name


def main(argv: list[str] | None = None) -> None:
    """Compare; a user error prints one line and exits with code 2."""
    args = parse_args(argv)
    with tempfile.TemporaryDirectory() as work_dir:
        with one_line_for(Exception, args.traceback):
            check_positive(samples=args.samples)
            cfg = load_config(args.config, args.method)
            apply_arguments(cfg, args)
            prepare(cfg, work_dir)
            preflight(cfg, 'model', 'train_dataloader')
        with one_line_for(ConfigError, args.traceback):
            compare = Compare(args.samples)
            runner = Runner.from_cfg(cfg)
            runner.register_hook(compare)
            runner.train()
            if not compare.compared:
                raise ConfigError(
                    'teacher_cache: no batch is recorded completely; train an epoch first'
                )
    print(f'{compare.compared} samples compared')
    for name, error in compare.errors.items():
        print(f'{name}: largest error {error:.2e} of the largest value')
    # NaN is a mismatch, too.
    if not all(error <= TOLERANCE for error in compare.errors.values()):
        sys.exit(1)


if __name__ == '__main__':
    main()

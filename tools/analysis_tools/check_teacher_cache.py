"""Compare random entries of a teacher cache with what the teacher gives now.

    python tools/analysis_tools/check_teacher_cache.py CONFIG [--samples N] [--cfg-options ...]

CONFIG is that of a run that has the cache: default_hooks.teacher_cache.dir names it. No entry is
written. Exit code 1: an entry differs by more than a thousandth of the largest value.
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
from mldr_kd_mm.engine.launch import preflight
from mldr_kd_mm.models.distillers.teacher_cache import FINGERPRINT
from mldr_kd_mm.utils.dist import unwrap_model
from mldr_kd_mm.utils.errors import ConfigError, check_positive, one_line_for

TOLERANCE = 1e-3
"""Of the largest value. Half precision rounds by half of it, another device by far less."""


class Compare(Hook):
    """Compares entries when the hook before it has opened the cache.

    Args:
        samples: How many samples to compare, spread over all views.
    """

    priority = 'LOWEST'

    def __init__(self, samples: int) -> None:
        self.samples = samples
        self.compared = 0
        self.errors: dict[str, float] = {}
        """Name -> the largest error, as a part of the largest value."""

    @torch.no_grad()
    def before_train(self, runner: Runner) -> None:
        """Compare batches in random order until there are enough."""
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
        found = model.teacher_cache.read([index.view for index in indices])
        if None in found.values():
            return
        loader = runner.train_dataloader
        data = loader.collate_fn(loader.dataset.__getitems__(indices))
        inputs = model.data_preprocessor(data, True)['inputs']
        with runner.optim_wrapper.optim_context(model):
            exact = model.run_teacher(inputs)
        for name, values in found.items():
            expected = exact[name].float().cpu()
            error = (values.float() - expected).abs().max() / expected.abs().max()
            self.errors[name] = max(self.errors.get(name, 0.0), error.item())
        self.compared += len(indices)


def parse_args(argv: list[str] | None = None) -> Namespace:
    """Return the parsed command line."""
    parser = ArgumentParser(description=__doc__, formatter_class=RawDescriptionHelpFormatter)
    parser.add_argument('config')
    parser.add_argument('--samples', type=int, default=256, help='default: 256')
    add_arguments(parser)
    return parser.parse_args(argv)


def prepare(cfg: Config, work_dir: str) -> None:
    """Make of a run one that ends where training would begin."""
    folder = cfg.get('default_hooks', {}).get('teacher_cache', {}).get('dir')
    if folder is None or not Path(folder, FINGERPRINT).is_file():
        raise ConfigError(
            f'default_hooks.teacher_cache.dir={folder!r}: must be the folder of a teacher cache'
        )
    cfg.train_cfg.pop('type', None)
    cfg.train_cfg.update(by_epoch=True, max_epochs=0)
    cfg.val_cfg = cfg.val_dataloader = cfg.val_evaluator = None
    cfg.update(work_dir=work_dir, log_level='WARNING', resume=False, visualizer=None)


def main(argv: list[str] | None = None) -> None:
    """Compare; a mistake of the user's ends in one line and exit code 2."""
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
                raise ConfigError('nothing is recorded yet, or nothing whole')
    print(f'{compare.compared} samples compared')
    for name, error in compare.errors.items():
        print(f'{name}: largest error {error:.2e} of the largest value')
    # A number that is none is no match either.
    if not all(error <= TOLERANCE for error in compare.errors.values()):
        sys.exit(1)


if __name__ == '__main__':
    main()

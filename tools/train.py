"""Train what a config describes.

    python tools/train.py CONFIG [--work-dir DIR] [--resume [CHECKPOINT]] [--amp] ...

Several processes: ``bash tools/dist_train.sh CONFIG GPUS``.
"""

import os
from argparse import ArgumentParser, Namespace

import torch
from _common import add_arguments, check_file, load_config, one_line_for, run
from mmengine.config import Config

from mldr_kd_mm.engine.launch import preflight
from mldr_kd_mm.utils.errors import ConfigError


def parse_args(argv: list[str] | None = None) -> Namespace:
    """Return the parsed command line."""
    parser = ArgumentParser(description='Train what a config describes.')
    parser.add_argument('config')
    parser.add_argument(
        '--resume',
        nargs='?',
        const='auto',
        metavar='CHECKPOINT',
        help='go on from this checkpoint; without a path, from the last one in the work directory',
    )
    parser.add_argument('--amp', action='store_true', help='mixed precision; needs a GPU')
    parser.add_argument('--no-validate', action='store_true', help='train without validation')
    parser.add_argument(
        '--auto-scale-lr',
        action='store_true',
        help='scale the learning rate to the batch size, by auto_scale_lr of the config',
    )
    add_arguments(parser)
    return parser.parse_args(argv)


def apply_flags(cfg: Config, args: Namespace) -> None:
    """Write the flags of training into the config."""
    if args.resume is None and int(os.environ.get('TORCHELASTIC_RESTART_COUNT', 0)):
        # torchrun starts all processes again when one has ended, see MAX_RESTARTS.
        args.resume = 'auto'
    if args.resume:
        cfg.resume = True
        cfg.load_from = None
        if args.resume != 'auto':
            check_file('--resume', args.resume)
            cfg.load_from = args.resume
    if args.no_validate:
        cfg.val_cfg = cfg.val_dataloader = cfg.val_evaluator = None
    if args.auto_scale_lr:
        if 'base_batch_size' not in cfg.get('auto_scale_lr', {}):
            raise ConfigError('--auto-scale-lr needs auto_scale_lr=dict(base_batch_size=...)')
        cfg.auto_scale_lr.enable = True
    if args.amp:
        if not torch.cuda.is_available():
            raise ConfigError('--amp needs a GPU, and torch finds none: leave it out')
        kind = cfg.optim_wrapper.get('type', 'OptimWrapper')
        if kind not in ('OptimWrapper', 'AmpOptimWrapper'):
            raise ConfigError(f"--amp needs optim_wrapper.type 'OptimWrapper', got '{kind}'")
        cfg.optim_wrapper.type = 'AmpOptimWrapper'
        cfg.optim_wrapper.setdefault('loss_scale', 'dynamic')


def main(argv: list[str] | None = None) -> None:
    """Train; a mistake of the user's ends in one line and exit code 2."""
    args = parse_args(argv)
    with one_line_for(Exception, args.traceback):
        cfg = load_config(args)
        apply_flags(cfg, args)
        fields = ['model', 'train_cfg', 'optim_wrapper', 'train_dataloader']
        if cfg.get('val_dataloader'):
            fields.append('val_dataloader')
        preflight(cfg, *fields)
    with one_line_for(ConfigError, args.traceback):
        run(cfg, 'train')


if __name__ == '__main__':
    main()

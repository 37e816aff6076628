"""Train a config.

    python tools/train.py CONFIG [--work-dir DIR] [--resume [CHECKPOINT]] [--overwrite] ...
    python tools/train.py configs/pairs/PAIR.py --method mldr

Several processes: ``bash tools/dist_train.sh CONFIG GPUS``.
"""

from argparse import ArgumentParser, Namespace

from mmengine.config import Config

from mldr_kd_mm.apis.configs import load_config
from mldr_kd_mm.engine.arguments import (
    add_arguments,
    add_training_arguments,
    apply_arguments,
    apply_training_arguments,
)
from mldr_kd_mm.engine.launch import run, shows_progress
from mldr_kd_mm.engine.preflight import preflight
from mldr_kd_mm.utils.errors import ConfigError, one_line_for
from mldr_kd_mm.utils.logging import quiet_console


def parse_args(argv: list[str] | None = None) -> Namespace:
    """Return the parsed command line."""
    parser = ArgumentParser(description='Train a config, or a pair with a method.')
    parser.add_argument(
        'config', help='path of a config, or of a pair in configs/pairs with --method'
    )
    add_training_arguments(parser)
    add_arguments(parser)
    return parser.parse_args(argv)


def make_config(args: Namespace) -> Config:
    """Return the config that the command line describes."""
    cfg = load_config(args.config, args.method)
    apply_arguments(cfg, args)
    apply_training_arguments(cfg, args)
    return cfg


def main(argv: list[str] | None = None) -> None:
    """Train; a user error prints one line and exits with code 2."""
    args = parse_args(argv)
    with one_line_for(Exception, args.traceback):
        cfg = make_config(args)
        fields = ['model', 'train_cfg', 'optim_wrapper', 'train_dataloader']
        if cfg.get('val_dataloader'):
            fields.append('val_dataloader')
        quiet = shows_progress(cfg) and not args.verbose
        with quiet_console(quiet):
            preflight(cfg, *fields)
    with one_line_for(ConfigError, args.traceback), quiet_console(quiet):
        run(cfg, 'train', args.overwrite)


if __name__ == '__main__':
    main()

"""Test a run's checkpoint or an exported student on the test set of a config.

    python tools/test.py CONFIG CHECKPOINT [--work-dir DIR] ...
    python tools/test.py configs/pairs/PAIR.py CHECKPOINT --method mldr

Several processes: ``bash tools/dist_test.sh CONFIG CHECKPOINT GPUS``.
"""

import os
from argparse import ArgumentParser, Namespace

from mldr_kd_mm.apis.configs import load_config
from mldr_kd_mm.engine.arguments import add_arguments, apply_arguments
from mldr_kd_mm.engine.launch import run, shows_progress
from mldr_kd_mm.engine.preflight import preflight
from mldr_kd_mm.utils.errors import ConfigError, one_line_for
from mldr_kd_mm.utils.logging import quiet_console


def parse_args(argv: list[str] | None = None) -> Namespace:
    """Return the parsed command line."""
    parser = ArgumentParser(description='Test a checkpoint on the test set of a config.')
    parser.add_argument(
        'config', help='path of a config, or of a pair in configs/pairs with --method'
    )
    parser.add_argument('checkpoint', help='path, URL or hf-hub: name of the checkpoint')
    add_arguments(parser)
    return parser.parse_args(argv)


def check_is_student(checkpoint: str, teacher_checkpoint: str | list[str | None] | None) -> None:
    """Raise a ConfigError if a checkpoint is the teacher's, which may fit the student, too."""
    is_list = isinstance(teacher_checkpoint, (list, tuple))
    taken = teacher_checkpoint if is_list else [teacher_checkpoint]
    if os.path.realpath(checkpoint) in [os.path.realpath(path) for path in taken if path]:
        raise ConfigError(
            f'checkpoint={checkpoint!r}: is model.teacher_checkpoint; give a checkpoint of the '
            'distillation run or an exported student'
        )


def main(argv: list[str] | None = None) -> None:
    """Test; a user error prints one line and exits with code 2."""
    args = parse_args(argv)
    with one_line_for(Exception, args.traceback):
        cfg = load_config(args.config, args.method)
        apply_arguments(cfg, args)
        cfg.load_from, cfg.resume = args.checkpoint, False
        if 'teacher_checkpoint' in cfg.get('model', {}):
            check_is_student(args.checkpoint, cfg.model.teacher_checkpoint)
            # A test runs the student alone: the teacher need not be on this machine.
            cfg.model.teacher_checkpoint = None
        # Sharding strategies are for training.
        cfg.runner_type, cfg.strategy = 'Runner', None
        quiet = shows_progress(cfg) and not args.verbose
        with quiet_console(quiet):
            preflight(cfg, 'model', 'test_cfg', 'test_evaluator', 'test_dataloader')
    with one_line_for(ConfigError, args.traceback), quiet_console(quiet):
        run(cfg, 'test')


if __name__ == '__main__':
    main()

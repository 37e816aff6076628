"""Test a checkpoint on the test set of a config.

    python tools/test.py CONFIG CHECKPOINT [--work-dir DIR] ...

Several processes: ``bash tools/dist_test.sh CONFIG CHECKPOINT GPUS``.
"""

from argparse import ArgumentParser, Namespace

from _common import add_arguments, check_file, load_config, one_line_for, run

from mldr_kd_mm.engine.launch import preflight
from mldr_kd_mm.utils.errors import ConfigError


def parse_args(argv: list[str] | None = None) -> Namespace:
    """Return the parsed command line."""
    parser = ArgumentParser(description='Test a checkpoint on the test set of a config.')
    parser.add_argument('config')
    parser.add_argument('checkpoint')
    add_arguments(parser)
    return parser.parse_args(argv)


def main(argv: list[str] | None = None) -> None:
    """Test; a mistake of the user's ends in one line and exit code 2."""
    args = parse_args(argv)
    with one_line_for(Exception, args.traceback):
        cfg = load_config(args)
        check_file('checkpoint', args.checkpoint)
        cfg.load_from = args.checkpoint
        if 'teacher_checkpoint' in cfg.get('model', {}):
            # Only the student is tested: its teacher need not be on this machine.
            cfg.model.teacher_checkpoint = None
        # A test shards nothing.
        cfg.runner_type, cfg.strategy = 'Runner', None
        preflight(cfg, 'model', 'test_cfg', 'test_evaluator', 'test_dataloader')
    with one_line_for(ConfigError, args.traceback):
        run(cfg, 'test')


if __name__ == '__main__':
    main()

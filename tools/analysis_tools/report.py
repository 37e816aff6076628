"""Show what runs logged, and what their models say of the validation set, on one page.

    python tools/analysis_tools/report.py WORK_DIR... [--out DIR] [--samples N] [--checkpoint NAME]

Writes DIR/report.html, which needs no network and no other file, and its figures into DIR/figures.
Several runs are drawn over each other. With a run of the student alone among them, the page shows
which confusions of classes distillation repaired. Run it where the runs were started, so that the
paths in their configs are found; docs/report.md says how to read each figure.
"""

import sys
from argparse import ArgumentParser, Namespace, RawDescriptionHelpFormatter
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1]))

from _common import one_line_for

from mldr_kd_mm.utils.errors import ConfigError
from mldr_kd_mm.utils.logging import log_warnings_only
from mldr_kd_mm.visualization.report import make_report


def parse_args(argv: list[str] | None = None) -> Namespace:
    """Return the parsed command line."""
    parser = ArgumentParser(description=__doc__, formatter_class=RawDescriptionHelpFormatter)
    parser.add_argument('work_dirs', nargs='+', metavar='WORK_DIR', help='of a run')
    parser.add_argument('--out', help='folder to write to; default: report in the first WORK_DIR')
    parser.add_argument(
        '--samples',
        type=int,
        default=2000,
        help='of the validation set, for the figures of the models; default: 2000',
    )
    parser.add_argument(
        '--checkpoint', metavar='NAME', help='a file in each WORK_DIR; default: the newest'
    )
    parser.add_argument('--traceback', action='store_true', help='show where an error came from')
    return parser.parse_args(argv)


def main(argv: list[str] | None = None) -> None:
    """Write the report; a mistake of the user's ends in one line and exit code 2."""
    args = parse_args(argv)
    out = args.out or Path(args.work_dirs[0], 'report')
    with one_line_for((ConfigError, OSError), args.traceback), log_warnings_only():
        print(make_report(args.work_dirs, out, args.samples, args.checkpoint))


if __name__ == '__main__':
    main()

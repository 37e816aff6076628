"""The command ``mldr-kd report``."""

from __future__ import annotations

from argparse import ArgumentParser, Namespace
from pathlib import Path

from mldr_kd_mm.cli.arguments import add_imports

HELP = 'compare runs on one HTML page'
DESCRIPTION = """Compare runs on one HTML page: training curves and figures of their predictions.

    mldr-kd report work_dirs/ONE_RUN work_dirs/ANOTHER --out report

This writes report/report.html, a single file that works offline, and report/figures/*.png. The
curves of several runs are overlaid. If one of them trained the student without a teacher, the page
also shows which errors distillation fixed. Run the command in the directory where you started the
runs, because the paths in their configs are relative to it.
"""


def add_arguments(parser: ArgumentParser) -> None:
    """Add the arguments of ``mldr-kd report``."""
    parser.add_argument('work_dirs', nargs='+', metavar='WORK_DIR', help='work directory of a run')
    parser.add_argument('--out', help='output folder; default: report in the first WORK_DIR')
    parser.add_argument(
        '--samples',
        type=int,
        default=2000,
        help='maximum number of validation samples to run the models on; default: 2000',
    )
    parser.add_argument(
        '--checkpoint',
        metavar='NAME',
        help='checkpoint file to load from each WORK_DIR; default: the newest',
    )
    add_imports(parser)


def run(args: Namespace) -> None:
    """Run ``mldr-kd report``."""
    from mldr_kd_mm.utils.logging import log_warnings_only
    from mldr_kd_mm.visualization.report import make_report

    out = args.out or Path(args.work_dirs[0], 'report')
    with log_warnings_only():
        print(make_report(args.work_dirs, out, args.samples, args.checkpoint))

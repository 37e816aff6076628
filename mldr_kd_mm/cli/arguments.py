"""Arguments that several commands share."""

from __future__ import annotations

from argparse import ArgumentParser


def add_imports(parser: ArgumentParser) -> None:
    """Add ``--imports``."""
    parser.add_argument(
        '--imports',
        nargs='+',
        default=(),
        metavar='MODULE',
        help="modules to import first, for a run with models or data of your own; the run's "
        'custom_imports are not imported',
    )

"""Arguments that several commands share."""

from __future__ import annotations

from argparse import ArgumentParser


def add_device(parser: ArgumentParser) -> None:
    """Add ``--device``."""
    parser.add_argument('--device', help='such as cpu or cuda; default: a GPU if there is one')


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


def add_val_fraction(parser: ArgumentParser) -> None:
    """Add ``--val-fraction``."""
    parser.add_argument(
        '--val-fraction',
        type=float,
        help='fraction to hold out if the folder has no val/ or test/; default: 0.1',
    )


def add_workers(parser: ArgumentParser) -> None:
    """Add ``--workers``."""
    parser.add_argument(
        '--workers',
        type=int,
        metavar='N',
        help='data-loading processes; default: one per core, up to 8',
    )

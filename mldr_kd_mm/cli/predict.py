"""The command ``mldr-kd predict``."""

from __future__ import annotations

import sys
from argparse import ArgumentParser, Namespace

from mldr_kd_mm.cli.arguments import add_device, add_imports
from mldr_kd_mm.utils.errors import ConfigError

HELP = 'predict the classes of images'
DESCRIPTION = """Predict the classes of images with a student.

    mldr-kd predict run/student my/photos
    mldr-kd predict run/student photo.jpg 'more/**/*.png' --top-k 3
    mldr-kd predict student.onnx my/photos --out predictions.csv

STUDENT is an exported folder or file (.pth, .safetensors, .onnx), a checkpoint of a run, or its
work directory, whose newest checkpoint is read. Images are prepared as in the run's validation.
Unreadable files are listed on stderr, and the exit code is then 1.
"""


def add_arguments(parser: ArgumentParser) -> None:
    """Add the arguments of ``mldr-kd predict``."""
    parser.add_argument(
        'student',
        help='exported folder, .pth, .safetensors or .onnx; checkpoint or work directory of a run',
    )
    parser.add_argument(
        'images', nargs='+', help='files, folders (searched recursively) or quoted patterns'
    )
    parser.add_argument(
        '--out', metavar='FILE', help='write a .csv or .json file; default: print a table'
    )
    parser.add_argument(
        '--overwrite', action='store_true', help='replace the file of --out if it exists'
    )
    parser.add_argument(
        '--top-k', type=int, default=1, metavar='N', help='classes per image; default: 1'
    )
    parser.add_argument(
        '--batch-size', type=int, default=32, metavar='N', help='images per batch; default: 32'
    )
    add_device(parser)
    add_imports(parser)


def run(args: Namespace) -> None:
    """Run ``mldr-kd predict``."""
    from mldr_kd_mm.apis.predict import check_table, predict, to_table, write_predictions
    from mldr_kd_mm.utils.logging import plural, warnings_on_stderr

    if args.out:
        check_table(args.out, args.overwrite)
    elif args.overwrite:
        raise ConfigError('overwrite=True: must not be set without --out')
    with warnings_on_stderr():
        results = predict(args.student, args.images, args.top_k, args.batch_size, args.device)
    failed = [result for result in results if result.error]
    read = [result for result in results if not result.error]
    if args.out and read:
        write_predictions(args.out, read, args.overwrite)
        print(f'{args.out}: {plural(len(read), "image")}')
    elif read:
        _print_table(list(to_table(read)))
    for result in failed:
        print(f'error: {result.error}', file=sys.stderr)
    if failed:
        print(f'{len(failed)} of {len(results)} files cannot be read', file=sys.stderr)
        sys.exit(1)


def _print_table(rows: list[list[str]]) -> None:
    """Print rows in aligned columns; a name may have characters that no terminal shows."""
    texts = [[''.join(filter(str.isprintable, text)) for text in row] for row in rows]
    widths = [max(map(len, column)) for column in zip(*texts, strict=True)]
    for row in texts:
        cells = (f'{text:<{width}}' for text, width in zip(row, widths, strict=True))
        print('  '.join(cells).rstrip())

"""The command ``mldr-kd probe``."""

from __future__ import annotations

import json
import sys
from argparse import ArgumentParser, Namespace

from mldr_kd_mm.cli.arguments import add_device, add_imports, add_val_fraction, add_workers

HELP = 'measure the features of a student on labelled images'
DESCRIPTION = """Measure the kNN and the linear-probe accuracy of a student's features.

    mldr-kd probe work_dirs/RUN --data my/images
    mldr-kd probe work_dirs/RUN/student --data my/images

It takes students with and without a head (mldr-kd distill --method embed). The features of the
validation images are classified by their nearest training images, and by a logistic regression on
the training images. If the output is not a terminal, it is one line of JSON.
"""


def add_arguments(parser: ArgumentParser) -> None:
    """Add the arguments of ``mldr-kd probe``."""
    add = parser.add_argument
    add('student', help='work directory of a run, checkpoint, or exported folder or file')
    add('--data', required=True, metavar='PATH', help='folder of labelled images')
    add_val_fraction(parser)
    add('--seed', type=int, help='seed of the held-out images; default: 0')
    add('--batch-size', type=int, default=128, metavar='N', help='images per batch; default: 128')
    add_workers(parser)
    add_device(parser)
    add('--json', action='store_true', help='print JSON on a terminal, too')
    add_imports(parser)


def run(args: Namespace) -> None:
    """Run ``mldr-kd probe``."""
    from mldr_kd_mm.apis.probe import probe
    from mldr_kd_mm.utils.logging import log_warnings_only, percent

    options = vars(args)
    as_json = options.pop('json') or not sys.stdout.isatty()
    with log_warnings_only():
        probed = probe(**options)
    if as_json:
        print(json.dumps(probed._asdict()))
        return
    print(f'images:       {probed.train_images} for training, {probed.val_images} for validation')
    print(f'kNN:          {percent(probed.knn)}')
    print(f'linear probe: {percent(probed.linear)}')

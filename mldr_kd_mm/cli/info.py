"""The command ``mldr-kd info``."""

from __future__ import annotations

from argparse import ArgumentParser, Namespace

from mldr_kd_mm.cli.arguments import add_imports

HELP = 'describe a checkpoint, a folder, a model or this installation'
DESCRIPTION = """Describe a checkpoint, a folder, a model or this installation.

    mldr-kd info work_dirs/RUN/epoch_100.pth    run, accuracy, weights
    mldr-kd info work_dirs/RUN                  the same of the newest checkpoint
    mldr-kd info mobilenetv2_100                parameters and the stages to distil
    mldr-kd info                                versions, GPUs, compiled kernels
"""


def add_arguments(parser: ArgumentParser) -> None:
    """Add the arguments of ``mldr-kd info``."""
    parser.add_argument(
        'subject',
        nargs='?',
        help='checkpoint, work directory, exported folder, folder of images, or model name; '
        'default: this installation',
    )
    add_imports(parser)


def run(args: Namespace) -> None:
    """Run ``mldr-kd info``."""
    from mldr_kd_mm.apis.info import describe

    facts = list(describe(args.subject))
    width = max(len(name) for name, _ in facts)
    for name, value in facts:
        print(f'{name:<{width}}  {value}')

"""The command ``mldr-kd tune``."""

from __future__ import annotations

import shlex
import sys
from argparse import ArgumentParser, Namespace

from mldr_kd_mm.utils.errors import ConfigError

HELP = 'search for the best hyperparameters of methods'
DESCRIPTION = """Search for the learning rate and the few hyperparameters of each method.

    mldr-kd tune --pair vit_to_resnet18_cifar100-20cls --methods scratch kd mldr --trials 20

Each method gets the same number of trials. They are compared on a held-out part of the training
set; the pair's validation set is not used. The command writes to work_dirs/search/STUDY:

    search.md       a table, and plots of each method's trials
    best/METHOD.py  the best config, for tools/train.py: it trains on the whole training set
    study.db        the trials, for optuna-dashboard

Repeat the command to continue, or start it several times to share the work. On several machines,
use one database: --storage postgresql://USER@HOST/NAME
"""


def add_arguments(parser: ArgumentParser) -> None:
    """Add the arguments of ``mldr-kd tune``."""
    add = parser.add_argument
    add('--pair', required=True, help='name in configs/pairs, or path of a config')
    add(
        '--methods',
        nargs='+',
        required=True,
        metavar='METHOD',
        help='scratch, which is the student alone, names in configs/_base_/methods, or paths',
    )
    add('--trials', type=int, default=20, metavar='N', help='trials of each method; default: 20')
    add(
        '--sampler',
        choices=('tpe', 'random'),
        default='tpe',
        help='how to choose values: from earlier trials or at random; default: tpe',
    )
    add(
        '--pruner',
        choices=('hyperband', 'halving', 'none'),
        default='hyperband',
        help='how to end worse trials early; default: hyperband',
    )
    add(
        '--held-out',
        type=float,
        default=0.1,
        metavar='FRACTION',
        help='fraction of the training set to hold out and compare trials on; default: 0.1',
    )
    add(
        '--seed',
        type=int,
        default=0,
        help='seed of the held-out part and of the trials; default: 0',
    )
    add(
        '--seeds',
        type=int,
        default=0,
        metavar='N',
        help='at the end, train each best config with seeds 0 to N-1 on the whole training set and '
        "write a table of the accuracies on the pair's validation set; default: 0",
    )
    add(
        '--study',
        metavar='NAME',
        help="name of the study, which processes with the same storage share; default: the pair's",
    )
    add(
        '--storage',
        metavar='URL',
        help='database for several machines; default: study.db in the work directory',
    )
    add(
        '--work-dir',
        metavar='FOLDER',
        help='folder for trials and results; default: work_dirs/search/STUDY',
    )
    add(
        '--jobs',
        type=int,
        metavar='N',
        help='concurrent runs; default: one per GPU, else one per core',
    )
    add(
        '--cfg-options',
        nargs='+',
        default=(),
        metavar='KEY=VALUE',
        help='override config fields of every run',
    )


def run(args: Namespace) -> None:
    """Run ``mldr-kd tune``."""
    from mldr_kd_mm.engine.arguments import CfgOptions
    from mldr_kd_mm.engine.processes import exit_when_stopped

    try:
        from mldr_kd_mm.apis.search import search
    except ImportError as error:
        raise ConfigError(
            f"tune: needs Optuna ({error}); run pip install 'mldr-kd-mm[search]'"
        ) from None
    options = ArgumentParser(prog='mldr-kd tune')
    options.add_argument('--cfg-options', nargs='*', action=CfgOptions, default={})
    parsed = options.parse_args(['--cfg-options', *args.cfg_options])
    command = shlex.join(['mldr-kd', *sys.argv[1:]])
    with exit_when_stopped('run the same command to continue'):
        failures = search(**vars(args) | vars(parsed), command=command)
    for failure in failures:
        print(f'error: {failure}', file=sys.stderr)
    sys.exit(1 if failures else 0)

"""The command ``mldr-kd``: distill, predict, export, probe, report, info, tune.

Each command is a module with ``HELP``, ``DESCRIPTION``, ``add_arguments`` and ``run``. Only ``run``
imports what is slow to import, so that ``--help``, ``--version`` and errors about options appear at
once.
"""

from __future__ import annotations

import re
from argparse import ArgumentParser, BooleanOptionalAction, Namespace, RawDescriptionHelpFormatter
from functools import partial

from mldr_kd_mm.cli import distill, export, info, predict, probe, report, tune
from mldr_kd_mm.utils.errors import one_line_for
from mldr_kd_mm.version import __version__

_USAGE = """Train a small image classifier from a larger one of a different architecture.

    mldr-kd distill --teacher vit_small_patch16_224 --student mobilenetv2_100 \\
        --data my/images --work-dir run
    mldr-kd info run
    mldr-kd report run
    mldr-kd predict run/student my/photos
    mldr-kd export run/epoch_100.pth student.onnx
    mldr-kd tune --pair vit_to_resnet18_cifar100-20cls --methods scratch kd mldr

`mldr-kd COMMAND --help` lists the options of a command.
"""


def make_parser() -> ArgumentParser:
    """Return the parser of the command line."""
    parser = ArgumentParser(
        prog='mldr-kd', description=_USAGE, formatter_class=RawDescriptionHelpFormatter
    )
    parser.add_argument('--version', action='version', version=f'mldr-kd {__version__}')
    commands = parser.add_subparsers(metavar='COMMAND', required=True)
    for module in (distill, predict, export, probe, report, info, tune):
        command = commands.add_parser(
            module.__name__.rpartition('.')[-1],
            help=module.HELP,
            description=module.DESCRIPTION,
            formatter_class=RawDescriptionHelpFormatter,
        )
        command.add_argument(
            '--traceback', action='store_true', help='on an error, print its traceback too'
        )
        module.add_arguments(command)
        command.set_defaults(run=module.run, parser=command)
    return parser


def main(argv: list[str] | None = None) -> None:
    """Run a command; an error ends it with one line and exit code 2.

    Args:
        argv: The arguments, by default those of the process.
    """
    args = vars(make_parser().parse_args(argv))
    run, parser, show_traceback = (args.pop(name) for name in ('run', 'parser', 'traceback'))
    imports = args.pop('imports', ())
    with one_line_for(Exception, show_traceback, partial(_name_options, parser)):
        if run is distill.run and not args['print_config']:
            _greet(Namespace(**args))
        import mldr_kd_mm.apis  # noqa: F401  registers every module of the package
        from mldr_kd_mm.utils.stored_config import import_modules

        import_modules(imports)
        run(Namespace(**args))


def _greet(args: Namespace) -> None:
    """Print the task before the imports, which take several seconds."""
    data = ' and '.join(filter(None, [args.data, args.unlabeled]))
    what = f'{args.teacher} -> {args.student} with {args.method} on {data}'
    print(f'mldr-kd {__version__}: {what}, loading PyTorch', flush=True)


def _name_options(parser: ArgumentParser, message: str) -> str:
    """Replace the names of Python's arguments in a message by the options of a command."""
    options = {a.dest: a for a in parser._actions if a.option_strings}
    for name, action in options.items():
        option, *others = action.option_strings
        if isinstance(action, BooleanOptionalAction):
            message = re.sub(rf'(?<![\w./]){name}=False', others[0], message)
        if action.nargs == 0:
            message = re.sub(rf'(?<![\w./]){name}=True', option, message)
        message = re.sub(rf'(?<![\w./]){name}=', f'{option} ', message)
        if '_' in name:
            message = re.sub(rf"(?<![\w.'/=-]){name}(?![\w.'/])", option, message)
    if 'data' in options:
        message = re.sub(r'(?<![\w./])data_root=', '--data ', message)
        message = re.sub(r'(?<![\w./])data_root(?=:)', '--data', message)
    return re.sub(r'(--[\w-]+) \(\1\)', r'\1', message)

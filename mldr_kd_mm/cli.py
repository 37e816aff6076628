"""The command ``mldr-kd``: distill, export, report, info.

The top of this module has only cheap imports, so that ``--help``, ``--version`` and errors about
options appear at once. A command imports the rest when it runs.
"""

from __future__ import annotations

from argparse import ArgumentParser, BooleanOptionalAction, Namespace, RawDescriptionHelpFormatter
from collections.abc import Callable
from pathlib import Path

from mldr_kd_mm.utils.errors import one_line_for
from mldr_kd_mm.version import __version__

_USAGE = """Train a small image classifier from a larger one of a different architecture.

    mldr-kd distill --teacher vit_small_patch16_224 --student mobilenetv2_100 \\
        --data my/images --work-dir run
    mldr-kd info run/epoch_100.pth
    mldr-kd report run
    mldr-kd export run/epoch_100.pth student.pth

`mldr-kd COMMAND --help` lists the options of a command.
"""
_DISTILL = """Train a student on a folder of images with the help of a teacher.

The folder has train/ and val/ (or test/), each with one subfolder per class. A folder with only
the classes' subfolders works too: a tenth of the images is then held out for validation.

    mldr-kd distill --teacher vit_small_patch16_224 --student mobilenetv2_100 \\
        --data my/images

This fine-tunes the pretrained teacher on the folder, then trains the student. Checkpoints, logs and
student.pth, an ordinary timm or mmpretrain checkpoint, are written to
work_dirs/vit_small_patch16_224_to_mobilenetv2_100_mldr.

With your own teacher and another method:

    mldr-kd distill --teacher vit_small_patch16_224 --teacher-checkpoint my_teacher.pth \\
        --student resnet18 --data my/images --method dist --epochs 50

Offline:         add --no-teacher-pretrained
On several GPUs: add --print-config > my_config.py, then run
                 bash tools/dist_train.sh my_config.py GPUS
"""
_EXPORT = """Export the student of a run to files that load without mldr-kd.

    mldr-kd export work_dirs/RUN/epoch_100.pth student.pth --onnx

This writes student.pth, student.md (a model card) and student.onnx. The suffix of the output
selects the format of the weights: .pth or .safetensors. Existing files are never overwritten.
"""
_REPORT = """Compare runs on one HTML page: training curves, and figures of the models' predictions.

    mldr-kd report work_dirs/ONE_RUN work_dirs/ANOTHER --out report

This writes report/report.html, a single file that works offline, and report/figures/*.png. The
curves of several runs are overlaid. If one of them trained the student without a teacher, the page
also shows which errors distillation fixed. Run the command in the directory where you started the
runs, because the paths in their configs are relative to it.
"""
_INFO = """Describe a checkpoint, a model or this installation.

    mldr-kd info work_dirs/RUN/epoch_100.pth    run, accuracy, weights
    mldr-kd info mobilenetv2_100                parameters and the stages to distil
    mldr-kd info                                versions, GPUs, compiled kernels
"""


def make_parser() -> ArgumentParser:
    """Return the parser of the command line."""
    parser = ArgumentParser(
        prog='mldr-kd', description=_USAGE, formatter_class=RawDescriptionHelpFormatter
    )
    parser.add_argument('--version', action='version', version=f'mldr-kd {__version__}')
    commands = parser.add_subparsers(metavar='COMMAND', required=True)

    def add(name: str, run: Callable[[Namespace], None], help: str, text: str) -> ArgumentParser:
        command = commands.add_parser(
            name, help=help, description=text, formatter_class=RawDescriptionHelpFormatter
        )
        command.add_argument(
            '--traceback', action='store_true', help='on an error, print its traceback too'
        )
        command.set_defaults(run=run)
        return command

    _add_distill(add('distill', _run_distill, 'train a student on a folder of images', _DISTILL))
    _add_export(add('export', _run_export, 'export the student of a run', _EXPORT))
    _add_report(add('report', _run_report, 'compare runs on one HTML page', _REPORT))
    info = add('info', _run_info, 'describe a checkpoint, a model or this installation', _INFO)
    info.add_argument('subject', nargs='?', help='checkpoint or model name')
    return parser


def main(argv: list[str] | None = None) -> None:
    """Run a command; an error ends it with one line and exit code 2.

    Args:
        argv: The arguments, by default those of the process.
    """
    args = vars(make_parser().parse_args(argv))
    run, show_traceback = args.pop('run'), args.pop('traceback')
    imports = args.pop('imports', ())
    with one_line_for(Exception, show_traceback):
        import mldr_kd_mm.apis  # noqa: F401  registers every module of the package
        from mldr_kd_mm.utils.stored_config import import_modules

        import_modules(imports)
        run(Namespace(**args))


def _add_distill(parser: ArgumentParser) -> None:
    add = parser.add_argument
    model = "timm/NAME, mmpretrain/NAME, NAME (looked up in both), or a config file's path"
    add('--teacher', required=True, help=f'teacher: {model}')
    add('--student', required=True, help='student, in the same form as the teacher')
    add('--data', required=True, metavar='FOLDER', help='folder of images')
    add(
        '--method',
        default='mldr',
        help=f'distillation method: {", ".join(_method_names())} or the path of a method file; '
        'default: mldr',
    )
    add('--epochs', type=int, default=100, help="student's training epochs; default: 100")
    add(
        '--teacher-checkpoint',
        metavar='PATH',
        help='path or URL of a teacher trained on these classes; skips training the teacher',
    )
    add(
        '--teacher-epochs',
        type=int,
        metavar='N',
        help="teacher's training epochs, if it has no checkpoint; default: as many as the "
        "student's; 0: no training, its pretrained weights already fit the classes",
    )
    switch = dict(action=BooleanOptionalAction)
    add(
        '--teacher-pretrained',
        default=True,
        **switch,
        help='start the teacher from pretrained weights; default: on',
    )
    add(
        '--student-pretrained',
        default=False,
        **switch,
        help='start the student from pretrained weights; default: off',
    )
    add(
        '--image-size',
        type=int,
        metavar='PX',
        help="height and width of the images; default: each model's native size",
    )
    add(
        '--batch-size',
        type=int,
        metavar='N',
        help='images per training step; default: 128, or less for a small folder',
    )
    add(
        '--lr',
        type=float,
        help="student's learning rate; default: the recipe's, scaled with the batch size",
    )
    add(
        '--teacher-lr',
        type=float,
        metavar='LR',
        help="teacher's learning rate; default: the recipe's, scaled with the batch size",
    )
    add(
        '--clip-grad',
        type=float,
        metavar='NORM',
        help="norm to which the student's gradients are scaled down; default: the recipe's",
    )
    add(
        '--augmentation',
        choices=('recipe', 'light'),
        default='recipe',
        help='recipe: crops and flips, for Transformers also mixup and cutmix; light: small '
        'shifts, for handwriting and similar images; default: recipe',
    )
    add(
        '--val-fraction',
        type=float,
        default=0.1,
        help='fraction to hold out if the folder has no val/ or test/; default: 0.1',
    )
    add('--seed', type=int, default=0, help='random seed; default: 0')
    add(
        '--workers',
        type=int,
        metavar='N',
        help='data-loading processes; default: one per core, up to 8',
    )
    add('--amp', default=None, **switch, help='mixed precision; default: on with a GPU')
    add(
        '--work-dir',
        metavar='FOLDER',
        help='folder for checkpoints and logs; default: work_dirs/TEACHER_to_STUDENT_METHOD',
    )
    add(
        '--resume',
        action='store_true',
        help='continue from the last checkpoint in the work directory',
    )
    add(
        '--overwrite',
        action='store_true',
        help='delete the checkpoints of an earlier run in the work directory and start again',
    )
    add(
        '--print-config',
        action='store_true',
        help='print the config for tools/train.py instead of training',
    )


def _method_names() -> list[str]:
    """Return the names of the shipped methods, without variants, whose names have an underscore."""
    files = Path(__file__).parent.glob('.mim/configs/_base_/methods/*.py')
    return sorted(file.stem for file in files if '_' not in file.stem)


def _run_distill(args: Namespace) -> None:
    from mldr_kd_mm.apis.distill import distill, distill_config
    from mldr_kd_mm.utils.logging import log_warnings_only

    options = vars(args)
    resume, overwrite = options.pop('resume'), options.pop('overwrite')
    only_print = options.pop('print_config')
    if only_print:
        with log_warnings_only():
            print(distill_config(**options).pretty_text)
        return
    result = distill(**options, resume=resume, overwrite=overwrite)
    if result.teacher_accuracy is not None:
        print(f'teacher:    {result.teacher_accuracy:.2f} %')
    print(f'student:    {result.accuracy:.2f} %, best epoch {result.best_accuracy:.2f} %')
    print(f'checkpoint: {result.checkpoint}')
    print(f'exported:   {result.student}')


def _add_export(parser: ArgumentParser) -> None:
    parser.add_argument('checkpoint', help='checkpoint of a distillation run')
    parser.add_argument('out', help='weights file to write, .pth or .safetensors')
    parser.add_argument('--onnx', action='store_true', help='also write an ONNX file')
    parser.add_argument('--torch-export', action='store_true', help='also write a .pt2 file')
    parser.add_argument(
        '--config',
        help="the run's config, a program that is executed; default: the copy in the checkpoint, "
        'which is not executed',
    )
    _add_imports(parser)


def _run_export(args: Namespace) -> None:
    from mldr_kd_mm.apis.export import export_student

    exported = export_student(**vars(args))
    for note in exported.notes:
        print(f'note: {note}')
    for path, description in exported.files.items():
        print(f'{path}: {description}')


def _add_report(parser: ArgumentParser) -> None:
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
    _add_imports(parser)


def _add_imports(parser: ArgumentParser) -> None:
    parser.add_argument(
        '--imports',
        nargs='+',
        default=(),
        metavar='MODULE',
        help="modules to import first, for a run with models or data of your own; the run's "
        'custom_imports are not imported',
    )


def _run_report(args: Namespace) -> None:
    from mldr_kd_mm.utils.logging import log_warnings_only
    from mldr_kd_mm.visualization.report import make_report

    out = args.out or Path(args.work_dirs[0], 'report')
    with log_warnings_only():
        print(make_report(args.work_dirs, out, args.samples, args.checkpoint))


def _run_info(args: Namespace) -> None:
    from mldr_kd_mm.apis.info import describe

    facts = list(describe(args.subject))
    width = max(len(name) for name, _ in facts)
    for name, value in facts:
        print(f'{name:<{width}}  {value}')

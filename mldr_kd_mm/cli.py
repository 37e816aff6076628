"""The command ``mldr-kd``: distill, export, report, info."""

from __future__ import annotations

import sys
import traceback
from argparse import ArgumentParser, BooleanOptionalAction, Namespace, RawDescriptionHelpFormatter
from collections.abc import Callable
from pathlib import Path

from mldr_kd_mm.apis.distill import AUGMENTATIONS, distill, distill_config
from mldr_kd_mm.apis.info import describe
from mldr_kd_mm.utils.errors import describe as describe_error
from mldr_kd_mm.utils.logging import log_warnings_only

_USAGE = """Distil one kind of image network into another.

    mldr-kd distill --teacher vit_small_patch16_224 --student mobilenetv2_100 --data my/images
    mldr-kd info work_dirs/vit_small_patch16_224_to_mobilenetv2_100_mldr/epoch_100.pth
    mldr-kd report work_dirs/vit_small_patch16_224_to_mobilenetv2_100_mldr
    mldr-kd export work_dirs/vit_small_patch16_224_to_mobilenetv2_100_mldr/epoch_100.pth student.pth

`mldr-kd COMMAND --help` says more of each.
"""
_DISTILL = """Let a teacher teach a student on a folder of images.

The folder holds train/ and val/ (or test/) with a folder of images for each class, or the folders
of the classes alone, of which a tenth is then held out.

    mldr-kd distill --teacher vit_small_patch16_224 --student mobilenetv2_100 --data my/images

trains the teacher on the folder, from its pretrained weights, then the student, and writes
checkpoints, logs and student.pth, the plain student, into
work_dirs/vit_small_patch16_224_to_mobilenetv2_100_mldr.

With a teacher that is trained already, and another method:

    mldr-kd distill --teacher vit_small_patch16_224 --teacher-checkpoint my_teacher.pth \\
        --student resnet18 --data my/images --method dist --epochs 50

Without a network:  --no-teacher-pretrained
On several GPUs:    --print-config > my_config.py, then tools/dist_train.sh my_config.py GPUS
"""
_EXPORT = """Write the plain student of a run, which loads with nothing of mldr-kd installed.

    mldr-kd export work_dirs/RUN/epoch_100.pth student.pth --onnx

writes student.pth, student.md (a model card) and student.onnx. The end of the output's name chooses
the format, .pth or .safetensors. Nothing that is there already is overwritten.
"""
_REPORT = """Show what runs logged, and what their models say of the validation set, on one page.

    mldr-kd report work_dirs/ONE_RUN work_dirs/ANOTHER --out report

writes report/report.html, which needs no network and no other file, and its figures.
"""
_INFO = """Say what a checkpoint, a model or this installation is.

    mldr-kd info work_dirs/RUN/epoch_100.pth    which run, its accuracies, which weights
    mldr-kd info mobilenetv2_100                parameters, and the stages that are found
    mldr-kd info                                versions, GPUs, compiled kernels
"""


def make_parser() -> ArgumentParser:
    """Return the parser of the command line."""
    parser = ArgumentParser(
        prog='mldr-kd', description=_USAGE, formatter_class=RawDescriptionHelpFormatter
    )
    commands = parser.add_subparsers(metavar='COMMAND', required=True)

    def add(name: str, run: Callable[[Namespace], None], help: str, text: str) -> ArgumentParser:
        command = commands.add_parser(
            name, help=help, description=text, formatter_class=RawDescriptionHelpFormatter
        )
        command.add_argument(
            '--traceback', action='store_true', help='show where an error came from'
        )
        command.set_defaults(run=run)
        return command

    _add_distill(add('distill', _run_distill, 'teach a student on a folder of images', _DISTILL))
    _add_export(add('export', _run_export, 'write the plain student of a run', _EXPORT))
    _add_report(add('report', _run_report, 'runs on one page of figures', _REPORT))
    info = add('info', _run_info, 'what a checkpoint, a model or this installation is', _INFO)
    info.add_argument('subject', nargs='?', help='a checkpoint or a model')
    return parser


def main(argv: list[str] | None = None) -> None:
    """Run a command; a mistake of the user's ends in one line and exit code 2."""
    args = vars(make_parser().parse_args(argv))
    run, show_traceback = args.pop('run'), args.pop('traceback')
    try:
        run(Namespace(**args))
    # Whatever a name, a folder or a file leads to; --traceback tells where it came from.
    except Exception as error:
        if show_traceback:
            traceback.print_exc()
        print(f'error: {describe_error(error)}', file=sys.stderr)
        sys.exit(2)


def _add_distill(parser: ArgumentParser) -> None:
    add = parser.add_argument
    names = "timm/NAME, mmpretrain/NAME, a bare NAME, or a config's path"
    add('--teacher', required=True, help=names)
    add('--student', required=True, help='the same')
    add('--data', required=True, metavar='FOLDER', help='of images')
    add('--method', default='mldr', help='mldr (default), kd, dkd, dist, ofa, ... or a path')
    add('--epochs', type=int, default=100, help='of the student; default: 100')
    add('--teacher-checkpoint', metavar='PATH', help='a teacher of these classes: path or URL')
    add(
        '--teacher-epochs',
        type=int,
        metavar='N',
        help='how long a teacher without a checkpoint is trained first; default: as long as the '
        'student; 0: not at all, its pretrained weights are of these classes',
    )
    switch = dict(action=BooleanOptionalAction)
    add('--teacher-pretrained', default=True, **switch, help='from pretrained weights')
    add('--student-pretrained', default=False, **switch, help='the same of the student')
    add('--image-size', type=int, metavar='PX', help='default: what each model was made for')
    add('--batch-size', type=int, metavar='N', help='default: 128, or less on a small folder')
    add('--lr', type=float, help="of the student; default: the recipe's, scaled with the batch")
    add('--teacher-lr', type=float, metavar='LR', help='of a teacher that is trained; the same')
    add(
        '--augmentation',
        choices=AUGMENTATIONS,
        default='recipe',
        help='recipe: crops, flips and more; light: small shifts, for writing and such',
    )
    add(
        '--val-fraction',
        type=float,
        default=0.1,
        help='held out of a folder without val/ or test/; default: 0.1',
    )
    add('--seed', type=int, default=0)
    add('--workers', type=int, metavar='N', help='that load images; default: one a core, up to 8')
    add('--amp', default=None, **switch, help='mixed precision; default: on a GPU')
    add('--work-dir', metavar='FOLDER', help='default: work_dirs/TEACHER_to_STUDENT_METHOD')
    add('--resume', action='store_true', help='go on from the last checkpoint in the work dir')
    add('--print-config', action='store_true', help='print what tools/train.py would take; no more')


def _run_distill(args: Namespace) -> None:
    options = vars(args)
    resume, only_print = options.pop('resume'), options.pop('print_config')
    if only_print:
        with log_warnings_only():
            print(distill_config(**options).pretty_text)
        return
    result = distill(**options, resume=resume)
    if result.teacher_accuracy is not None:
        print(f'teacher:    {result.teacher_accuracy:.2f} %')
    print(f'student:    {result.accuracy:.2f} %, best epoch {result.best_accuracy:.2f} %')
    print(f'checkpoint: {result.checkpoint}')
    print(f'exported:   {result.student}')


def _add_export(parser: ArgumentParser) -> None:
    parser.add_argument('checkpoint', help='of a distillation run')
    parser.add_argument('out', help='file to write, .pth or .safetensors')
    parser.add_argument('--onnx', action='store_true', help='write an ONNX file too')
    parser.add_argument('--torch-export', action='store_true', help='write a .pt2 file too')
    parser.add_argument('--config', help='of the run, where the copy in the checkpoint is not it')


def _run_export(args: Namespace) -> None:
    from mldr_kd_mm.apis.export import export_student

    exported = export_student(**vars(args))
    for note in exported.notes:
        print(f'note: {note}')
    for path, words in exported.files.items():
        print(f'{path}: {words}')


def _add_report(parser: ArgumentParser) -> None:
    parser.add_argument('work_dirs', nargs='+', metavar='WORK_DIR', help='of a run')
    parser.add_argument('--out', help='folder to write to; default: report in the first WORK_DIR')
    parser.add_argument(
        '--samples', type=int, default=2000, help='that the models are run on; default: 2000'
    )
    parser.add_argument(
        '--checkpoint', metavar='NAME', help='a file in each WORK_DIR; default: the newest'
    )


def _run_report(args: Namespace) -> None:
    from mldr_kd_mm.visualization.report import make_report

    out = args.out or Path(args.work_dirs[0], 'report')
    with log_warnings_only():
        print(make_report(args.work_dirs, out, args.samples, args.checkpoint))


def _run_info(args: Namespace) -> None:
    facts = list(describe(args.subject))
    width = max(len(name) for name, _ in facts)
    for name, value in facts:
        print(f'{name:<{width}}  {value}')


if __name__ == '__main__':
    main()

"""The command ``mldr-kd``: distill, predict, export, probe, report, info, tune.

The top of this module has only cheap imports, so that ``--help``, ``--version`` and errors about
options appear at once. A command imports the rest when it runs.
"""

from __future__ import annotations

import json
import re
import shlex
import signal
import sys
from argparse import ArgumentParser, BooleanOptionalAction, Namespace, RawDescriptionHelpFormatter
from collections.abc import Callable
from functools import partial
from pathlib import Path

from mldr_kd_mm.utils.errors import ConfigError, one_line_for
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
_DISTILL = """Train a student on a folder of images with the help of a teacher.

The folder has train/ and val/ (or test/), each with one subfolder per class. A folder with only
the classes' subfolders works too: about a tenth of the images is then held out for validation. A
zip file of such a folder is unpacked beside it.

    mldr-kd distill --teacher vit_small_patch16_224 --student mobilenetv2_100 \\
        --data my/images

This fine-tunes the pretrained teacher on the folder, then trains the student. It writes to
work_dirs/vit_small_patch16_224_to_mobilenetv2_100_mldr:

    student/      the student, its preprocessing and its class names, for
                  timm.create_model('local-dir:FOLDER/student', pretrained=True)
    student.pth   an ordinary timm or mmpretrain checkpoint
    epoch_*.pth   checkpoints, and logs

A student of mmpretrain has a config.py in student/ for its ImageClassificationInferencer.

With your own teacher and another method:

    mldr-kd distill --teacher vit_small_patch16_224 --teacher-checkpoint my_teacher.pth \\
        --student resnet18 --data my/images --method dist --epochs 50

Compare with the student alone: add --baseline
Offline:         add --no-teacher-pretrained
Without labels:  add --unlabeled more/images; with a --teacher-checkpoint, --data may be left out
A backbone:      --method embed trains a student without a head on a teacher's feature
On several GPUs: add --print-config > my_config.py, then run
                 bash tools/dist_train.sh my_config.py GPUS
"""
_PREDICT = """Predict the classes of images with a student.

    mldr-kd predict run/student my/photos
    mldr-kd predict run/student photo.jpg 'more/**/*.png' --top-k 3
    mldr-kd predict student.onnx my/photos --out predictions.csv

STUDENT is an exported folder or file (.pth, .safetensors, .onnx), or a checkpoint of a run. Images
are prepared as in the run's validation. Unreadable files are listed on stderr, and the exit code is
then 1.
"""
_TUNE = """Search for the learning rate and the few hyperparameters of each method.

    mldr-kd tune --pair vit_to_resnet18_cifar100-20cls --methods scratch kd mldr --trials 20

Each method gets the same number of trials. They are compared on a held-out part of the training
set; the pair's validation set is not used. The command writes to work_dirs/search/STUDY:

    search.md       a table, and plots of each method's trials
    best/METHOD.py  the best config, for tools/train.py: it trains on the whole training set
    study.db        the trials, for optuna-dashboard

Repeat the command to continue, or start it several times to share the work. On several machines,
use one database: --storage postgresql://USER@HOST/NAME
"""
_EXPORT = """Export the student of a run to files that load without mldr-kd.

    mldr-kd export work_dirs/RUN/epoch_100.pth student
    mldr-kd export work_dirs/RUN/epoch_100.pth student.onnx
    mldr-kd export work_dirs/RUN/epoch_100.pth student.pth --onnx
    mldr-kd export work_dirs/RUN/epoch_100.pth student.onnx --onnx-preprocessing
    mldr-kd export work_dirs/RUN/epoch_100.pth student.onnx --int8 --calibrate my/images
    mldr-kd export work_dirs/RUN/epoch_100.pth backbone.pth --backbone

The first command writes a folder that timm loads with its preprocessing and class names:
timm.create_model('local-dir:student', pretrained=True). A student of mmpretrain gets a config.py
there. The suffix of a file selects its format: .pth, .safetensors, .onnx or .pt2. A model card is
written too. Existing files are never overwritten.
"""
_PROBE = """Measure the kNN and the linear-probe accuracy of a student's features.

    mldr-kd probe work_dirs/RUN --data my/images
    mldr-kd probe work_dirs/RUN/student --data my/images

It takes students with and without a head (mldr-kd distill --method embed). The features of the
validation images are classified by their nearest training images, and by a logistic regression on
the training images. The last line is JSON.
"""
_REPORT = """Compare runs on one HTML page: training curves, and figures of the models' predictions.

    mldr-kd report work_dirs/ONE_RUN work_dirs/ANOTHER --out report

This writes report/report.html, a single file that works offline, and report/figures/*.png. The
curves of several runs are overlaid. If one of them trained the student without a teacher, the page
also shows which errors distillation fixed. Run the command in the directory where you started the
runs, because the paths in their configs are relative to it.
"""
_INFO = """Describe a checkpoint, a folder, a model or this installation.

    mldr-kd info work_dirs/RUN/epoch_100.pth    run, accuracy, weights
    mldr-kd info work_dirs/RUN                  the same of the newest checkpoint
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
        command.set_defaults(run=run, parser=command)
        return command

    _add_distill(add('distill', _run_distill, 'train a student on a folder of images', _DISTILL))
    _add_predict(add('predict', _run_predict, 'predict the classes of images', _PREDICT))
    _add_export(add('export', _run_export, 'export the student of a run', _EXPORT))
    about = 'measure the features of a student on labelled images'
    _add_probe(add('probe', _run_probe, about, _PROBE))
    _add_report(add('report', _run_report, 'compare runs on one HTML page', _REPORT))
    about = 'describe a checkpoint, a folder, a model or this installation'
    info = add('info', _run_info, about, _INFO)
    info.add_argument(
        'subject',
        nargs='?',
        help='checkpoint, work directory, exported folder, folder of images, or model name; '
        'default: this installation',
    )
    _add_imports(info)
    about = 'search for the best hyperparameters of methods'
    _add_tune(add('tune', _run_tune, about, _TUNE))
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
        if run is _run_distill and not args['print_config']:
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
        message = re.sub(r'(?<![\w./])data_root(=|(?=:))', '--data ', message)
    return re.sub(r'(--[\w-]+) \(\1\)', r'\1', message)


def _add_distill(parser: ArgumentParser) -> None:
    add = parser.add_argument
    model = (
        'timm/NAME, mmpretrain/NAME, NAME (looked up in both), torchvision/NAME, hf/NAME (a '
        "Hugging Face repository or folder), or a config file's path"
    )
    add('--teacher', required=True, help=f'teacher: {model}')
    add('--student', required=True, help='student, in the same form as the teacher')
    add(
        '--data',
        metavar='PATH',
        help='folder or zip file of labelled images; default: none, only --unlabeled',
    )
    add(
        '--unlabeled',
        metavar='PATH',
        help='images without labels: a folder or zip file, or a text file of paths; default: none',
    )
    add(
        '--unlabeled-ratio',
        type=float,
        metavar='RATIO',
        help='fraction of unlabelled images in each batch; default: 0.5, or less if there are '
        'fewer unlabelled images than labelled ones',
    )
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
        help='path or URL of a teacher trained on these classes; default: it is trained first',
    )
    add(
        '--teacher-init',
        metavar='PATH',
        help='path or URL of teacher weights for other classes, to fine-tune on the folder; '
        'default: its pretrained weights',
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
        help="height and width of both models' images; default: each model's native size",
    )
    add(
        '--teacher-size',
        type=int,
        metavar='PX',
        help="height and width of the teacher's images, which are resized from the student's "
        'during distillation; default: --image-size',
    )
    add(
        '--student-size',
        type=int,
        metavar='PX',
        help="height and width of the student's images; default: --image-size",
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
        '--baseline',
        action='store_true',
        help='train the student alone, too, under the same recipe, and print its accuracy',
    )
    add(
        '--export',
        choices=('last', 'best'),
        default='last',
        help='epoch of which the student is exported: the last, or the best by its validation '
        'accuracy; default: last',
    )
    add(
        '--visualizer',
        choices=('tensorboard', 'wandb', 'mlflow'),
        help='package that also receives curves and figures; default: only files in the work '
        'directory',
    )
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
        '--verbose',
        action='store_true',
        help='print the whole log; default: setup, one line per epoch, warnings, results',
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
    from mldr_kd_mm.apis.configs import needs_head
    from mldr_kd_mm.apis.distill import distill, distill_config
    from mldr_kd_mm.utils.logging import log_warnings_only

    options = vars(args)
    names = ('baseline', 'export', 'resume', 'overwrite', 'verbose')
    run_options = {name: options.pop(name) for name in names}
    if options.pop('print_config'):
        with log_warnings_only():
            print(distill_config(**options).pretty_text)
        return
    result = distill(**options, **run_options)
    if result.teacher_accuracy is not None:
        print(f'teacher:    {result.teacher_accuracy:.2f} %')
    if result.accuracy is None:
        print('student:    accuracy not measured, as there are no validation images')
    else:
        best = '' if run_options['export'] == 'best' else f': {result.best_accuracy:.2f} %'
        print(f'student:    {result.accuracy:.2f} % (best epoch{best})')
    runs = [result.work_dir]
    if result.baseline_accuracy is not None:
        print(f'baseline:   {result.baseline_accuracy:.2f} %, the student without a teacher')
        runs.append(str(Path(result.work_dir, 'baseline')))
    print(f'checkpoint: {result.checkpoint}')
    print(f'exported:   {result.student}')
    print(f'folder:     {result.folder}')
    if needs_head(options['method']):  # a student without a head predicts no classes
        print(f'next:       mldr-kd predict {shlex.quote(result.folder)} IMAGES')
    if result.accuracy is not None:
        print(f'next:       mldr-kd report {shlex.join(runs)}')


def _add_predict(parser: ArgumentParser) -> None:
    parser.add_argument(
        'student', help='exported folder, .pth, .safetensors or .onnx, or a checkpoint of a run'
    )
    parser.add_argument(
        'images', nargs='+', help='files, folders (searched recursively) or quoted patterns'
    )
    parser.add_argument(
        '--out', metavar='FILE', help='write a .csv or .json file; default: print a table'
    )
    parser.add_argument(
        '--top-k', type=int, default=1, metavar='N', help='classes per image; default: 1'
    )
    parser.add_argument(
        '--batch-size', type=int, default=32, metavar='N', help='images per batch; default: 32'
    )
    parser.add_argument('--device', help='such as cpu or cuda; default: a GPU if there is one')
    _add_imports(parser)


def _run_predict(args: Namespace) -> None:
    from mldr_kd_mm.apis.predict import check_table, predict, to_table, write_predictions
    from mldr_kd_mm.utils.logging import log_warnings_only, plural

    if args.out:
        check_table(args.out)
    with log_warnings_only():
        results = predict(args.student, args.images, args.top_k, args.batch_size, args.device)
    failed = [result for result in results if result.error]
    read = [result for result in results if not result.error]
    if args.out and read:
        write_predictions(args.out, read)
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


def _add_export(parser: ArgumentParser) -> None:
    parser.add_argument('checkpoint', help='checkpoint of a distillation run')
    parser.add_argument('out', help='folder to write, or a file: .pth, .safetensors, .onnx or .pt2')
    parser.add_argument('--onnx', action='store_true', help='also write an ONNX file')
    parser.add_argument(
        '--onnx-preprocessing',
        action='store_true',
        help='write an ONNX file that prepares the images itself: uint8 RGB images of any size in, '
        'probabilities out',
    )
    parser.add_argument('--torch-export', action='store_true', help='also write a .pt2 file')
    parser.add_argument(
        '--int8', action='store_true', help='quantise the .onnx file and measure its accuracy'
    )
    parser.add_argument(
        '--calibrate',
        metavar='FOLDER',
        help='images to calibrate --int8 with: one folder per class, or train/ of that form',
    )
    parser.add_argument(
        '--calibration-images',
        type=int,
        default=256,
        metavar='N',
        help='number of calibration images; default: 256',
    )
    parser.add_argument(
        '--validate',
        metavar='FOLDER',
        help='images to measure --int8 on: one folder per class, or val/ of that form; default: '
        "the run's validation set",
    )
    parser.add_argument(
        '--max-drop',
        type=float,
        default=1.0,
        metavar='POINTS',
        help='largest allowed loss of accuracy by --int8, in percentage points; default: 1',
    )
    parser.add_argument(
        '--backbone',
        action='store_true',
        help='write the weights without the head, for detection and segmentation',
    )
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


def _add_probe(parser: ArgumentParser) -> None:
    add = parser.add_argument
    add('student', help='work directory of a run, checkpoint, or exported folder or file')
    add('--data', required=True, metavar='PATH', help='folder of labelled images')
    add(
        '--val-fraction',
        type=float,
        default=0.1,
        help='fraction to hold out if the folder has no val/ or test/; default: 0.1',
    )
    add('--seed', type=int, default=0, help='seed of the held-out images; default: 0')
    add('--batch-size', type=int, default=128, metavar='N', help='images per batch; default: 128')
    add(
        '--workers',
        type=int,
        metavar='N',
        help='data-loading processes; default: one per core, up to 8',
    )
    _add_imports(parser)


def _run_probe(args: Namespace) -> None:
    from mldr_kd_mm.apis.probe import probe
    from mldr_kd_mm.utils.logging import log_warnings_only

    with log_warnings_only():
        probed = probe(**vars(args))
    print(f'images:       {probed.train_images} for training, {probed.val_images} for validation')
    print(f'kNN:          {probed.knn:.2f} %')
    print(f'linear probe: {probed.linear:.2f} %')
    print(json.dumps(probed._asdict()))


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


def _add_tune(parser: ArgumentParser) -> None:
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


def _run_tune(args: Namespace) -> None:
    from mldr_kd_mm.engine.arguments import CfgOptions

    try:
        from mldr_kd_mm.apis.search import search
    except ImportError as error:
        raise ConfigError(
            f"tune: needs Optuna ({error}); run pip install 'mldr-kd-mm[search]'"
        ) from None
    options = ArgumentParser(prog='mldr-kd tune')
    options.add_argument('--cfg-options', nargs='*', action=CfgOptions, default={})
    parsed = options.parse_args(['--cfg-options', *args.cfg_options])
    # SIGTERM ends a job on a cluster; like Ctrl-C it ends the runs too.
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    try:
        command = shlex.join(['mldr-kd', *sys.argv[1:]])
        failures = search(**vars(args) | vars(parsed), command=command)
    except KeyboardInterrupt:
        print('stopped; run the same command to continue', file=sys.stderr)
        sys.exit(130)
    for failure in failures:
        print(f'error: {failure}', file=sys.stderr)
    sys.exit(1 if failures else 0)

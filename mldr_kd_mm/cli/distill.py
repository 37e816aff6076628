"""The command ``mldr-kd distill``."""

from __future__ import annotations

import shlex
from argparse import ArgumentParser, BooleanOptionalAction, Namespace
from pathlib import Path

from mldr_kd_mm.cli.arguments import add_val_fraction, add_workers
from mldr_kd_mm.utils.errors import ConfigError

HELP = 'train a student on a folder of images'
DESCRIPTION = """Train a student on a folder of images with the help of a teacher.

The folder has train/ and val/ (or test/), each with one subfolder per class. A folder with only
the classes' subfolders works too: about a tenth of the images is then held out for validation. A
zip file of such a folder is unpacked beside it.

    mldr-kd distill --teacher vit_small_patch16_224 --student mobilenetv2_100 \\
        --data my/images

This fine-tunes the pretrained teacher on the folder, then trains the student. It writes to
work_dirs/vit_small_patch16_224_to_mobilenetv2_100_mldr_rsd:

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


def add_arguments(parser: ArgumentParser) -> None:
    """Add the arguments of ``mldr-kd distill``."""
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
        default='mldr_rsd',
        help=f'distillation method: {", ".join(_method_names())} or the path of a method file; '
        'default: mldr_rsd',
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
    add_val_fraction(parser)
    add('--seed', type=int, default=0, help='random seed; default: 0')
    add_workers(parser)
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
    files = Path(__file__).parents[1].glob('.mim/configs/_base_/methods/*.py')
    return sorted(file.stem for file in files if '_' not in file.stem)


def run(args: Namespace) -> None:
    """Run ``mldr-kd distill``."""
    from mldr_kd_mm.apis.configs import needs_head
    from mldr_kd_mm.apis.distill import distill, distill_config
    from mldr_kd_mm.utils.logging import log_warnings_only, percent, shown_path

    options = vars(args)
    names = ('baseline', 'export', 'resume', 'overwrite', 'verbose')
    run_options = {name: options.pop(name) for name in names}
    if options.pop('print_config'):
        for name in ('baseline', 'export', 'resume', 'overwrite'):
            if (value := run_options[name]) not in (False, 'last'):
                raise ConfigError(f'{name}={value!r}: must not be set with --print-config')
        with log_warnings_only():
            print(distill_config(**options).pretty_text)
        return
    result = distill(**options, **run_options)
    has_head = needs_head(options['method'])
    kind = '' if has_head else ' by kNN'
    if result.teacher_accuracy is not None:
        print(f'teacher:    {percent(result.teacher_accuracy)}{kind}')
    if result.accuracy is None:
        print('student:    accuracy not measured, as there are no validation images')
    else:
        best = '' if run_options['export'] == 'best' else f': {percent(result.best_accuracy)}'
        print(f'student:    {percent(result.accuracy)}{kind} (best epoch{best})')
    runs = [result.work_dir]
    if result.baseline_accuracy is not None:
        print(f'baseline:   {percent(result.baseline_accuracy)}, the student without a teacher')
        runs.append(str(Path(result.work_dir, 'baseline')))
    print(f'checkpoint: {shown_path(result.checkpoint)}')
    print(f'exported:   {shown_path(result.student)}')
    print(f'folder:     {shown_path(result.folder)}')
    folder = shlex.quote(shown_path(result.folder))
    if has_head:
        print(f'next:       mldr-kd predict {folder} IMAGES')
    else:
        data = shlex.quote(args.data) if args.data else 'LABELLED_IMAGES'
        held_out = f' --seed {args.seed}' if args.seed else ''
        if args.val_fraction is not None:
            held_out += f' --val-fraction {args.val_fraction}'
        print(f'next:       mldr-kd probe {folder} --data {data}{held_out}')
    if result.accuracy is not None:
        print(f'next:       mldr-kd report {shlex.join(runs)}')

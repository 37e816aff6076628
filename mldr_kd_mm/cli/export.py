"""The command ``mldr-kd export``."""

from __future__ import annotations

from argparse import ArgumentParser, Namespace

from mldr_kd_mm.cli.arguments import add_imports

HELP = 'export the student of a run'
DESCRIPTION = """Export the student of a run to files that load without mldr-kd.

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


def add_arguments(parser: ArgumentParser) -> None:
    """Add the arguments of ``mldr-kd export``."""
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
    add_imports(parser)


def run(args: Namespace) -> None:
    """Run ``mldr-kd export``."""
    from mldr_kd_mm.apis.export import export_student

    exported = export_student(**vars(args))
    for note in exported.notes:
        print(f'note: {note}')
    for path, description in exported.files.items():
        print(f'{path}: {description}')

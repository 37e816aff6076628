"""Write the plain student of a distillation run, which loads with nothing of ours installed.

    python tools/model_converters/export_student.py work_dirs/RUN/epoch_300.pth student.pth

writes student.pth and a model card, student.md. The end of the output's name chooses the format,
.pth or .safetensors. --onnx adds student.onnx, --torch-export adds student.pt2; both are read back
and compared with the student. Nothing that is there already is overwritten.

The weights load into the student's config without the Distiller around it (mmpretrain's
``init_model``, ``load_from``), or, for a TimmClassifier, with ``timm.create_model(...,
checkpoint_path=...)``; the card has the lines. If EMA was on, the file holds the averaged weights,
as the run's checkpoint does. docs/export.md says more.
"""

import sys
from argparse import ArgumentParser, RawDescriptionHelpFormatter

from mldr_kd_mm.apis.export import ExportError, export_student
from mldr_kd_mm.utils.errors import ConfigError


def main(argv: list[str] | None = None) -> None:
    """Export; a mistake of the user's ends in one line and exit code 2."""
    parser = ArgumentParser(description=__doc__, formatter_class=RawDescriptionHelpFormatter)
    parser.add_argument('checkpoint', help='checkpoint of a distillation run')
    parser.add_argument('out', help='file to write, .pth or .safetensors')
    parser.add_argument('--onnx', action='store_true', help='write an ONNX file too')
    parser.add_argument(
        '--torch-export', action='store_true', help='write a file of torch.export, .pt2, too'
    )
    parser.add_argument(
        '--config',
        help="the run's config, if the student is of a package that its custom_imports name; "
        'default: the copy in the checkpoint',
    )
    args = parser.parse_args(argv)
    try:
        exported = export_student(**vars(args))
    except (ConfigError, ExportError, OSError) as error:
        print(f'error: {error}', file=sys.stderr)
        sys.exit(2)
    for note in exported.notes:
        print(f'note: {note}')
    for path, words in exported.files.items():
        print(f'{path}: {words}')


if __name__ == '__main__':
    main()

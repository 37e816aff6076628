"""Write the plain student of a distillation run, which loads with nothing of ours installed.

    python tools/model_converters/export_student.py work_dirs/RUN/epoch_300.pth student.pth

The end of the output's name chooses the format, .pth or .safetensors. The weights load into the
student's config without the Distiller around it (mmpretrain's ``init_model``, ``load_from``), or,
for a TimmClassifier, with ``timm.create_model(..., checkpoint_path=...)``. If EMA was on, the file
holds the averaged weights, as the run's checkpoint does.
"""

import os
import sys
from argparse import ArgumentParser, RawDescriptionHelpFormatter
from pathlib import Path
from tempfile import TemporaryDirectory

import torch
from safetensors.torch import save_file

from mldr_kd_mm.checkpoint import load_checkpoint, student_state_dict
from mldr_kd_mm.errors import ConfigError


def export(checkpoint: str, out: str) -> int:
    """Write the student's weights, whole or not at all.

    Args:
        checkpoint: Path of the checkpoint of a distillation run.
        out: Path of the new file, ``.pth`` or ``.safetensors``.

    Returns:
        The number of tensors written.

    Raises:
        FileNotFoundError: If there is no such checkpoint.
        ConfigError: If the checkpoint is of another kind, or ``out`` of no known format or there
            already.
    """
    if Path(out).suffix not in ('.pth', '.safetensors'):
        raise ConfigError(f'out={out!r}: must end with .pth or .safetensors')
    if os.path.lexists(out):
        raise ConfigError(f'out={out!r}: is there already: remove it, or name another file')
    content = load_checkpoint(checkpoint)
    student = {key: value.contiguous() for key, value in student_state_dict(content).items()}
    Path(out).parent.mkdir(parents=True, exist_ok=True)
    with TemporaryDirectory(dir=Path(out).parent) as folder:
        unfinished = Path(folder, Path(out).name)
        if unfinished.suffix == '.safetensors':
            save_file(student, unfinished, metadata={'format': 'pt'})
        else:
            # mmpretrain's init_model reads the names of the classes from here.
            meta = content.get('meta')
            known = meta.get('dataset_meta') if isinstance(meta, dict) else None
            meta = {'dataset_meta': known} if known else {}
            torch.save({'state_dict': student, 'meta': meta}, unfinished)
        os.replace(unfinished, out)
    return len(student)


def main(argv: list[str] | None = None) -> None:
    """Export; a mistake of the user's ends in one line and exit code 2."""
    parser = ArgumentParser(description=__doc__, formatter_class=RawDescriptionHelpFormatter)
    parser.add_argument('checkpoint', help='checkpoint of a distillation run')
    parser.add_argument('out', help='file to write, .pth or .safetensors')
    args = parser.parse_args(argv)
    try:
        count = export(args.checkpoint, args.out)
    except (ConfigError, OSError) as error:
        print(f'error: {error}', file=sys.stderr)
        sys.exit(2)
    print(f'{args.out}: {count} tensors of the student')


if __name__ == '__main__':
    main()

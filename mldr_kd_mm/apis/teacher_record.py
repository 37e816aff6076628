"""Record of a teacher that was trained on a folder, from which a later run can reuse it."""

from __future__ import annotations

import copy
import hashlib
import json
import os
from pathlib import Path

from mmengine.config import Config

from mldr_kd_mm.apis.options import Options
from mldr_kd_mm.apis.training_images import TrainingImages
from mldr_kd_mm.utils.atomic_files import atomic_write
from mldr_kd_mm.utils.errors import ConfigError
from mldr_kd_mm.utils.limits import read_text
from mldr_kd_mm.utils.run_identity import Origin, fingerprint, hash_file

RECORD = 'teacher.json'
"""Name of the record in the work directory of a teacher."""


def teacher_fingerprint(options: Options, images: TrainingImages, cfg: Config) -> str:
    """Return a hash of what decides a teacher's weights: images, model and options.

    Images count as in :meth:`~mldr_kd_mm.datasets.ImageFolder.fingerprint`, wherever their folder
    is.

    Args:
        options: The options of the run.
        images: The images, of which the labelled ones count.
        cfg: Config of the run that trains the teacher.

    Returns:
        64 hexadecimal digits.
    """
    cfg = copy.deepcopy(cfg)
    cfg.train_dataloader.dataset.data_root = images.labeled.fingerprint()
    start = options.teacher_init
    start = hash_file(start) if start and os.path.isfile(start) else start
    facts = [fingerprint(cfg, processes=1), options.teacher_pretrained, start]
    return hashlib.sha256(json.dumps(facts).encode()).hexdigest()


def record_teacher(checkpoint: Path, fingerprint: str) -> None:
    """Record that a teacher is trained.

    Args:
        checkpoint: Its checkpoint.
        fingerprint: The result of :func:`teacher_fingerprint`.

    Raises:
        ConfigError: The checkpoint cannot be read or is not of a training run.
        OSError: The record cannot be written.
    """
    with atomic_write(checkpoint.with_name(RECORD)) as file:
        file.write(json.dumps(_facts(checkpoint, fingerprint)).encode() + b'\n')


def is_recorded(checkpoint: Path, fingerprint: str) -> bool:
    """Return whether a checkpoint is of a trained teacher with this fingerprint.

    Args:
        checkpoint: The checkpoint.
        fingerprint: The result of :func:`teacher_fingerprint`.
    """
    try:
        record = json.loads(read_text(checkpoint.with_name(RECORD)))
        return record == _facts(checkpoint, fingerprint)
    except (OSError, ValueError, RecursionError):  # ConfigError, which is a ValueError, too
        return False


def _facts(checkpoint: Path, fingerprint: str) -> dict[str, str]:
    origin = Origin.read(checkpoint, 'teacher_checkpoint')
    if origin is None:
        raise ConfigError(f'teacher_checkpoint={str(checkpoint)!r}: is not of a training run')
    return dict(fingerprint=fingerprint, checkpoint=checkpoint.name, run=origin.run)

"""Distil a teacher into a student on a folder of images."""

from __future__ import annotations

import copy
import inspect
import logging
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from mmengine.config import Config
from mmengine.logging import MessageHub, print_log
from mmengine.runner import Runner
from torch import nn

from mldr_kd_mm.apis.models import NamedModel, fetch_pretrained
from mldr_kd_mm.apis.options import Options, parse_options
from mldr_kd_mm.apis.recipe import baseline_config, find_models, student_config, teacher_config
from mldr_kd_mm.apis.teacher_record import is_recorded, record_teacher, teacher_fingerprint
from mldr_kd_mm.apis.training_images import read_training_images
from mldr_kd_mm.engine.launch import fit_to_machine, start
from mldr_kd_mm.engine.preflight import preflight
from mldr_kd_mm.engine.work_dir import claim_work_dirs
from mldr_kd_mm.evaluation.logged_run import ACCURACY
from mldr_kd_mm.models.weights import OtherClassesError
from mldr_kd_mm.utils.checkpoint import read_weights
from mldr_kd_mm.utils.errors import ConfigError, check_choice, check_switch
from mldr_kd_mm.utils.logging import percent, plural, quiet_console, tell

EXPORTS = ('last', 'best')
"""Checkpoints of which the student can be exported: that of the last or the best epoch."""

_FIELDS = ('model', 'train_cfg', 'optim_wrapper', 'train_dataloader', 'val_dataloader')


def _show_options(function: Callable) -> Callable:
    """Put the options in place of ``**options`` in the signature that ``help()`` shows."""
    *own, _ = inspect.signature(function, eval_str=True).parameters.values()
    names = {parameter.name for parameter in own}
    options = [
        parameter.replace(kind=inspect.Parameter.KEYWORD_ONLY)
        for parameter in inspect.signature(Options, eval_str=True).parameters.values()
        if parameter.name not in names
    ]
    function.__signature__ = inspect.Signature([*own, *options])
    return function


class Distilled(NamedTuple):
    """Result of a distillation run.

    Attributes:
        work_dir: Directory of the checkpoints and logs.
        accuracy: Top-1 accuracy of the exported student, in percent: that of the validation after
            the last epoch, or after the best one if ``export='best'``. None if there are no
            validation images.
        best_accuracy: Highest top-1 accuracy of the student in any epoch, in percent, or None.
        teacher_accuracy: Top-1 accuracy of the teacher, in percent; None if it was not measured.
        checkpoint: Path of the last checkpoint, from which training can be resumed.
        student: Path of the exported student's weights.
        folder: Path of the folder with the exported student, its preprocessing and class names.
            ``timm.create_model('local-dir:FOLDER', pretrained=True)`` loads a timm model from it.
            For a student given as a module, it has the weights, to load into the module.
        baseline_accuracy: Top-1 accuracy of the student trained alone, after the same epoch as
            ``accuracy``, last or best, in percent; None if it was not trained.
    """

    work_dir: str
    accuracy: float | None
    best_accuracy: float | None
    teacher_accuracy: float | None
    checkpoint: str
    student: str
    folder: str
    baseline_accuracy: float | None = None


@_show_options
def distill_config(
    teacher: str | dict | nn.Module,
    student: str | dict | nn.Module,
    data: str | None = None,
    method: str | dict = 'mldr_rsd',
    epochs: int = 100,
    **options: Any,
) -> Config:
    """Return the config that :func:`distill` trains.

    The config combines files of ``configs/_base_``: the runtime, the recipe for the student's kind
    of network, shortened to the number of epochs, and the method. Its ``pretty_text`` is a config
    file for ``tools/train.py``. That does not train the teacher first, as :func:`distill` does: the
    teacher's checkpoint must be at ``model.teacher_checkpoint``.

    Args:
        teacher: Name, config path or config of the teacher, see :func:`distill`.
        student: Name, config path or config of the student.
        data: Folder or zip file of labelled images, see :func:`distill`.
        method: Name, path or dict of the method.
        epochs: Number of training epochs of the student.
        **options: The other options of :func:`distill`, except those that are
            named in its signature only.

    Returns:
        The config.

    Raises:
        ConfigError: If an argument or the folder of images is invalid.
    """
    parsed = parse_options(teacher, student, data, method, epochs, **options)
    images = read_training_images(parsed)
    return student_config(parsed, images, *find_models(parsed, images.num_classes))


@_show_options
def distill(
    teacher: str | dict | nn.Module,
    student: str | dict | nn.Module,
    data: str | None = None,
    method: str | dict = 'mldr_rsd',
    epochs: int = 100,
    *,
    baseline: bool = False,
    export: str = 'last',
    resume: bool = False,
    overwrite: bool = False,
    verbose: bool = False,
    **options: Any,
) -> Distilled:
    """Train a student with a teacher on a folder of images.

    ::

        from mldr_kd_mm import distill

        result = distill(
            teacher='timm/vit_small_patch16_224', student='mobilenetv2_100', data='my/images',
            method='mldr_rsd', epochs=100)
        print(result.accuracy, result.student)

    Without ``teacher_checkpoint`` the teacher is first trained on the folder, because its
    pretrained weights are for other classes. Training starts from these weights. A teacher that an
    earlier run has trained in the work directory with the same images and options is reused.

    With ``method='embed'`` neither model has a head and the student learns the teacher's feature,
    without labels. The teacher keeps its weights, and accuracies are those of the nearest training
    images (kNN, :class:`~mldr_kd_mm.engine.knn_loop.KNNLoop`).

    Args:
        teacher: ``timm/NAME``, ``mmpretrain/NAME``, or a bare NAME, which is looked up in timm,
            then in ``configs/_base_/models``, then in mmpretrain. Also ``torchvision/NAME``, or
            ``hf/NAME`` for a repository of the Hugging Face hub or a folder; the path of a config,
            a config dict, or a module that maps images (B, 3, H, W), normalised with ImageNet's
            statistics, to logits (B, C). The last three are used unchanged. A copy of a module is
            trained, from its own weights; a module as the teacher is not trained unless
            ``teacher_epochs`` is given.
        student: The student, in any form that ``teacher`` accepts.
        data: A folder with ``train/`` and ``val/`` (or ``test/``), each with one folder per class;
            or with the class folders alone, of which ``val_fraction`` is held out; see
            :class:`~mldr_kd_mm.datasets.ImageFolder`. Or a zip file of such a folder, which is
            unpacked beside it once. With ``unlabeled`` it may have ``val/`` alone, or be None: the
            teacher must then have its weights (``teacher_checkpoint``, ``teacher_epochs=0`` or a
            module), and without ``data`` the student gets the teacher's classes and no accuracy is
            measured.
        method: Name of a config in ``configs/_base_/methods``, path of a file of that form, or the
            ``method`` dict of one.
        epochs: Number of training epochs of the student. The warm-up is shortened with it.
        baseline: Whether to train the student alone afterwards, under the same recipe, in
            ``WORK_DIR/baseline``.
        export: Which student to export: of the ``'last'`` epoch, or of the ``'best'`` one by its
            validation accuracy.
        resume: Whether to continue from the last checkpoint in the work directory.
        overwrite: Whether to delete the checkpoints of an earlier run in the work directory. If
            neither this nor ``resume`` is set, a directory with checkpoints is an error.
        verbose: Whether to print the whole log. False: the console shows the setup, one
            line per epoch, warnings and results; the log file in the work directory has the rest.
        **options: The keyword arguments below.

    Keyword Args:
        unlabeled (str | None): Images without labels, on which the student learns from the teacher
            alone: a folder, a zip file of one, or a text file with the path of an image on each
            line; see :class:`~mldr_kd_mm.datasets.UnlabeledFolder`.
        unlabeled_ratio (float | None): Fraction of unlabelled images in each batch, if there are
            labelled images too; an epoch shows each labelled image once. None: 0.5, or less if
            there are fewer unlabelled images than labelled ones.
        teacher_checkpoint (str | None): Path, URL or ``hf-hub:`` name of teacher weights for the
            classes of the folder. None: train the teacher first.
        teacher_init (str | None): Path, URL or ``hf-hub:`` name of teacher weights for other
            classes, from which the training of the teacher starts, with a new head. None: its
            pretrained weights.
        teacher_epochs (int | None): Number of training epochs of the teacher. None: as many as the
            student. 0: do not train it; its pretrained weights have the classes of the folder.
        teacher_pretrained (bool): Whether the teacher starts from its pretrained weights.
            Default: True.
        student_pretrained (bool): Whether the student starts from its pretrained weights.
            Default: False, as in the papers' tables.
        image_size (int | None): Height and width for both models, in pixels. None: the size that
            each model was made for.
        teacher_size (int | None): Height and width of the teacher's images, in pixels, if they
            differ from ``image_size``. During distillation they are resized from the student's.
        student_size (int | None): Height and width of the student's images, in pixels, if they
            differ from ``image_size``.
        batch_size (int | None): Images per training step. None: 128, as in the recipes, or less on
            a small folder, down to 16, so that an epoch has 16 steps. At most all images.
        lr (float | None): Learning rate of the student. None: the recipe's, scaled to the batch
            size, up to that for 512.
        teacher_lr (float | None): Learning rate of a teacher that is trained first. None: the
            recipe's, scaled in the same way.
        clip_grad (float | None): Norm to which the student's gradients are scaled down. None: 5 for
            Transformers; for CNNs, the gradient of each unit is limited to the norm of its weights
            (``AdaptiveClipHook``).
        augmentation (str): ``'recipe'``: random crops and flips, and in the Transformer recipe also
            RandAugment, erasing, mixup and cutmix. ``'light'``: the whole image, shifted by up to
            an eighth, for handwriting and similar data. Default: ``'recipe'``.
        val_fraction (float | None): Fraction of the images to hold out. It must not be set if the
            folder has validation images. None: 0.1.
        seed (int): Seed of the weights, the augmentation and the held-out images. Default: 0.
        workers (int | None): Number of processes that load images. None: one per core, at most 8.
        amp (bool | None): Whether to use mixed precision. None: if there is a GPU.
        visualizer (str | None): Package that also receives curves and figures: ``'tensorboard'``,
            ``'wandb'`` or ``'mlflow'``. None: the files in the work directory only.
        work_dir (str | None): Directory for checkpoints and logs. None:
            ``work_dirs/TEACHER_to_STUDENT_METHOD``.

    Returns:
        Accuracies and paths.

    Raises:
        ConfigError: If an argument or the folder of images is invalid, the teacher's number of
            classes is not that of the folder, or the work directory is in use.
        MissingFileError: If the teacher checkpoint does not exist.
        SystemExit: If a signal stopped the training of the teacher or the student.
    """
    check_switch(baseline=baseline, resume=resume, overwrite=overwrite, verbose=verbose)
    check_choice(EXPORTS, export=export)
    with quiet_console(not verbose):
        parsed = parse_options(teacher, student, data, method, epochs, **options)
        if baseline and not parsed.has_head:
            raise ConfigError(
                f'baseline=True: must be False, as method={method!r} trains a student without a '
                'head, which has no loss of its own'
            )
        return _distill(parsed, baseline, export, resume, overwrite)


def _distill(
    parsed: Options, baseline: bool, export: str, resume: bool, overwrite: bool
) -> Distilled:
    """Run :func:`distill` with checked options."""
    if parsed.teacher_init is not None:
        read_weights(parsed.teacher_init, 'teacher_init')  # find a wrong file early
    images = read_training_images(parsed)
    if baseline and images.labeled is None:
        raise ConfigError('baseline=True: must not be set without labelled images to train on')
    if export == 'best' and images.val is None:
        raise ConfigError("export='best': must be 'last' without validation images")
    teacher_model, student_model = find_models(parsed, images.num_classes)
    cfg = student_config(parsed, images, teacher_model, student_model)
    # Find a mistake in the student's config before the teacher is trained.
    checked = copy.deepcopy(cfg)
    if parsed.trains_teacher:
        checked.model.teacher_checkpoint = None
    fields = _FIELDS if images.val is not None else _FIELDS[:-1]
    try:
        preflight(checked, *fields)
    except OtherClassesError as error:
        advice = (
            f'val/ of data={str(parsed.data)!r} must have all classes of the teacher'
            if images.labeled is None
            else 'give it as teacher_init instead, to fine-tune it on the folder first'
        )
        raise ConfigError(f'{error.problem}; {advice}') from error
    runs = [(cfg, resume)]
    if baseline:
        baseline_cfg = baseline_config(cfg)
        runs.append((baseline_cfg, resume))
    if parsed.trains_teacher:
        teacher_cfg = teacher_config(parsed, images, teacher_model, cfg)
        checkpoint = Path(cfg.model.teacher_checkpoint)
        facts = teacher_fingerprint(parsed, images, teacher_cfg)
        # The facts about a module do not include its weights.
        is_module = isinstance(parsed.teacher, nn.Module)
        is_trained = not is_module and is_recorded(checkpoint, facts)
        is_kept = is_trained or (resume and checkpoint.is_file())
        if not is_kept:
            preflight(teacher_cfg, *_FIELDS)
        runs.append((teacher_cfg, resume or is_trained))
    with claim_work_dirs(runs, overwrite):
        if parsed.trains_teacher:
            if is_kept:
                _log_reuse(checkpoint, is_trained)
            else:
                _train_teacher(parsed, teacher_model, teacher_cfg, str(checkpoint), resume)
                record_teacher(checkpoint, facts)
        result = _result(cfg, _train(cfg, resume).message_hub, export)
        if baseline:
            alone = _accuracies(_train(baseline_cfg, resume).message_hub)
            result = result._replace(baseline_accuracy=alone[export])
            _judge_teacher(result)
        return result


def _result(cfg: Config, hub: MessageHub, export: str) -> Distilled:
    """Export the student of a finished run and collect its results."""
    accuracies = _accuracies(hub)
    last = hub.get_info('last_ckpt')
    student, folder = _export(last if export == 'last' else hub.get_info('best_ckpt'), cfg.work_dir)
    return Distilled(
        work_dir=cfg.work_dir,
        accuracy=accuracies[export],
        best_accuracy=accuracies['best'],
        teacher_accuracy=hub.runtime_info.get('teacher_metrics', {}).get(ACCURACY),
        checkpoint=last,
        student=student,
        folder=folder,
    )


def _accuracies(hub: MessageHub) -> dict[str, float | None]:
    """Return the top-1 accuracy of a run after its last and its best epoch, in percent."""
    if f'val/{ACCURACY}' not in hub.log_scalars:
        return dict(last=None, best=None)
    history = hub.log_scalars[f'val/{ACCURACY}'].data[0]
    return dict(last=float(history[-1]), best=float(max(history)))


def _judge_teacher(result: Distilled) -> None:
    """Warn about a teacher that is less accurate than the student without it."""
    teacher, alone = result.teacher_accuracy, result.baseline_accuracy
    if teacher is not None and teacher < alone:
        print_log(
            f"the teacher's accuracy, {percent(teacher)}, is below that of the student alone, "
            f'{percent(alone)}; train the teacher for more epochs, or choose a stronger one',
            'current',
            logging.WARNING,
        )


def _log_reuse(checkpoint: Path, is_same: bool) -> None:
    """Log that a teacher is not trained again, and if it may differ from the one asked for."""
    if is_same:
        tell(f'teacher: reusing {str(checkpoint)!r}, trained with the same images and options')
    else:
        print_log(
            f'resume: keeps the teacher {str(checkpoint)!r}, although its images or options are '
            'not known to be those of this run',
            'current',
            logging.WARNING,
        )


def _train_teacher(
    options: Options, teacher: NamedModel, cfg: Config, checkpoint: str, resume: bool
) -> None:
    """Train the teacher on the folder."""
    pretrained = Path(cfg.work_dir, 'pretrained.pth')
    resume = resume and any(path != pretrained for path in pretrained.parent.glob('*.pth'))
    if resume:
        cfg.load_from = None
    elif cfg.load_from is None and options.teacher_pretrained and isinstance(options.teacher, str):
        cfg.load_from = fetch_pretrained(teacher, pretrained, 'teacher')
    tell(
        f'teacher: training {teacher.name} on the folder first, for '
        f'{plural(options.epochs_of_teacher, "epoch")}; later runs can use {checkpoint!r}'
    )
    _train(cfg, resume)


def _train(cfg: Config, resume: bool) -> Runner:
    """Train a config in this process."""
    # mmengine reuses the logger of a run with the same name that started in the same second.
    cfg.experiment_name = Path(cfg.work_dir).name
    cfg.resume = resume
    fit_to_machine(cfg)
    runner = start(cfg, 'train')
    runner.visualizer.close()  # wandb and MLflow would log the next run to the same one
    return runner


def _export(checkpoint: str, work_dir: str) -> Sequence[str]:
    """Write the student as a file and as a folder, replacing those of an earlier run."""
    from mldr_kd_mm.apis.export import export_student

    outputs = [str(Path(work_dir, name)) for name in ('student.pth', 'student')]
    for out in outputs:
        export_student(checkpoint, out, overwrite=True)
    return outputs

"""Load a checkpoint into a Distiller or a classifier, whichever of them the file is of."""

from __future__ import annotations

from collections import defaultdict
from typing import Any

from torch import Tensor, nn

from mldr_kd_mm.models.distillers.distiller import Distiller
from mldr_kd_mm.models.weights import LoadReport, load_content
from mldr_kd_mm.utils.checkpoint import find_state_dict
from mldr_kd_mm.utils.errors import ConfigError

_STUDENT = 'student.'


def load_into(
    model: nn.Module, content: dict[str, Any], label: str, for_training: bool = False
) -> LoadReport:
    """Load a run's checkpoint, an exported student or any other weights of a classifier.

    Args:
        model: A Distiller or a classifier. Of a Distiller, the student must be in the file. The
            neck and each loss are loaded if the file has all of their weights.
        content: Content of the checkpoint.
        label: What to call the checkpoint in error messages.
        for_training: Whether the model is trained from these weights; a head for another number of
            classes then keeps its initial weights.

    Returns:
        The report. ``new`` lists the neck and the losses that are not in the file.

    Raises:
        ConfigError: A weight is missing, or the weights are the teacher's.
    """
    if not isinstance(model, Distiller):
        return load_content(model, content, label, for_training=for_training)
    try:
        report = load_content(model.student, content, label, for_training=for_training)
    except ConfigError as error:
        if _is_of_teacher(model, content, label):
            raise ConfigError(
                f"{label}: has the teacher's weights, must have the student's; give a checkpoint "
                'of the distillation run or an exported student'
            ) from error
        raise
    everything = find_state_dict(content, label).tensors
    rest = {name: value for name, value in everything.items() if not name.startswith(_STUDENT)}
    if len(rest) == len(everything):  # of a classifier
        rest = {}
    loaded, new = _load_parts(model, rest)
    return report._replace(
        matched=report.matched + len(loaded),
        unexpected=[*report.unexpected, *(name for name in rest if name not in loaded)],
        new=tuple(new),
    )


def _is_of_teacher(model: Distiller, content: dict[str, Any], label: str) -> bool:
    for _, teacher, _ in model.teachers:
        try:
            # This changes the teacher, but the run ends with an error.
            load_content(teacher.model, content, label, for_training=True)
        except ConfigError:
            continue
        return True
    return False


def _load_parts(model: Distiller, weights: dict[str, Tensor]) -> tuple[set[str], list[str]]:
    """Load the neck and the losses that a file has as a whole.

    Returns:
        The names of the loaded weights, and the parts that keep their initial weights.
    """
    parts = defaultdict(dict)
    for name, value in model.state_dict().items():
        if not name.startswith(_STUDENT):
            depth = 2 if name.startswith('losses.') else 1
            parts['.'.join(name.split('.')[:depth])][name] = value
    loaded, new = set(), []
    for part, own in parts.items():
        shapes = {name: weights[name].shape for name in own if name in weights}
        if shapes == {name: value.shape for name, value in own.items()}:
            found = {name.removeprefix(f'{part}.'): weights[name] for name in own}
            model.get_submodule(part).load_state_dict(found)
            loaded |= set(own)
        else:
            new.append(part)
    return loaded, new

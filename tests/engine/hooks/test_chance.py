"""A caution for a model that has learned nothing."""

from types import SimpleNamespace

import numpy as np
import pytest
from mmengine.logging import HistoryBuffer

from mldr_kd_mm.engine.hooks import ChanceHook


def cautions(labels, teacher=None, accuracy=None, iteration=0):
    """Return the warnings at the beginning and the end of a run."""
    found = []
    dataset = SimpleNamespace(get_gt_labels=lambda: labels() if callable(labels) else labels)
    scalars, info = {}, {}
    if teacher is not None:
        info['teacher_metrics'] = {'accuracy/top1': teacher, 'accuracy/top5': 99.0}
    if accuracy is not None:
        scalars['val/accuracy/top1'] = HistoryBuffer([5.0, accuracy], [1, 1])
    runner = SimpleNamespace(
        val_loop=object(),
        val_dataloader=SimpleNamespace(dataset=dataset),
        message_hub=SimpleNamespace(runtime_info=info, log_scalars=scalars),
        logger=SimpleNamespace(warning=found.append),
        iter=iteration,
    )
    ChanceHook().before_train(runner)
    ChanceHook().after_train(runner)
    return found


EQUAL = np.arange(30) % 3
MOSTLY_0 = [0] * 9 + [1]


@pytest.mark.parametrize(
    ('labels', 'chance'), [(EQUAL, 33.33), (MOSTLY_0, 90.0), (list(range(100)), 1.0)]
)
def test_at_chance(labels, chance):
    end = f'predicting the most frequent class, {chance:.1f} %'
    for accuracy in (chance, chance / 2):
        (text,) = cautions(labels, teacher=accuracy)
        assert text.startswith(f"the teacher's accuracy, {accuracy:.1f} %") and end in text
        (text,) = cautions(labels, accuracy=accuracy)
        assert text.startswith(f'the accuracy, {accuracy:.1f} %') and end in text
    assert not cautions(labels, teacher=chance + 1, accuracy=chance + 1)


def test_a_teacher_below_the_student():
    (text,) = cautions(EQUAL, teacher=70.0, accuracy=75.5)
    assert text.startswith("the teacher's accuracy, 70.0 %, is below the student's, 75.5 %; ")
    assert not cautions(EQUAL, teacher=75.5, accuracy=75.5)


def test_a_resumed_run_does_not_repeat_it():
    assert not cautions(EQUAL, teacher=1.0, iteration=3)


@pytest.mark.parametrize('labels', [[], [[0, 1], [1, 0]]])
def test_without_one_label_an_image(labels):
    assert not cautions(labels, 0.0, 0.0)


@pytest.mark.parametrize('error', [AttributeError, KeyError, ValueError])
def test_without_labels(error):
    def labels():
        raise error

    assert not cautions(labels, 0.0, 0.0)

"""The verdict of a report, from logged runs without models."""

from pathlib import Path

import pytest
from mmengine.config import Config

from mldr_kd_mm.evaluation.logged_run import LoggedRun
from mldr_kd_mm.visualization.series import Entry, data_set, group_runs
from mldr_kd_mm.visualization.verdict import closed, gain, verdict

STUDENT = dict(type='ImageClassifier', backbone=dict(type='ResNet'))
PAIR = dict(type='Distiller', teacher=dict(type='TimmClassifier'), student=STUDENT)
DIGITS = dict(type='mldr_kd_mm.Digits', split='test', pipeline=[dict(type='PackInputs')])


def entry(name, accuracy, *, model=STUDENT, seed=0, teacher=None, dataset=DIGITS, images=600):
    """Return a run with an accuracy after each of two epochs."""
    config = Config(
        dict(
            model=model,
            randomness=dict(seed=seed),
            val_dataloader=dict(dataset=dataset),
            train_dataloader=dict(batch_size=10),
        )
    )
    records = [{'accuracy/top1': value, 'step': n} for n, value in enumerate([1.0, accuracy], 1)]
    if teacher is not None:
        records.insert(0, {'teacher/accuracy/top1': teacher, 'step': 0})
    return Entry(LoggedRun(name, Path(name), config, records), images=images)


def group(*entries):
    return group_runs(entries, str)


def test_helps_with_seeds():
    taught = [
        entry(f'mldr_seed{n}', a, model=PAIR, seed=n, teacher=88.6) for n, a in ((0, 87), (1, 88))
    ]
    untaught = [entry(f'alone_seed{n}', a, seed=n) for n, a in ((0, 78.3), (1, 79.3))]
    series = group(*taught, *untaught)
    assert [each.name for each in series] == ['mldr (2 seeds)', 'alone (2 seeds)']
    assert [each.color for each in series] == ['0', '1']
    assert series[0].curve('accuracy/top1') == {1: 1.0, 2: 87.5}
    low, high = series[0].band('accuracy/top1')
    assert (low[2], high[2]) == (pytest.approx(87.5 - 0.5**0.5), pytest.approx(87.5 + 0.5**0.5))
    assert gain(*series) == pytest.approx(8.7)
    assert closed(*series) == pytest.approx(100 * 8.7 / 9.8)
    assert verdict(series) == [
        'mldr (2 seeds): distillation helps. 87.50 ± 0.71 %, +8.7 points over the student alone, '
        "89 % of the teacher's lead, teacher 88.6 %."
    ]


@pytest.mark.parametrize(
    ('accuracy', 'images', 'word'),
    [
        (82.0, 600, 'no clear difference, at a standard error of 2.3 points'),
        (82.0, 60000, 'distillation helps'),
        (60.0, 600, 'distillation hurts'),
        (100.0, 600, 'distillation helps'),
        (95.0, None, 'not judged, as the number of validation images is unknown'),
    ],
)
def test_one_run_is_judged_by_its_images(accuracy, images, word):
    taught = entry('mldr', accuracy, model=PAIR, teacher=90.0, images=images)
    (line,) = verdict(group(taught, entry('alone', 80.0, images=images)))
    assert line.startswith(f'mldr: {word}. {accuracy:.2f} %, {accuracy - 80:+.1f} points')


def test_a_teacher_without_a_lead_has_no_share():
    (line,) = verdict(group(entry('mldr', 85.0, model=PAIR, teacher=79.0), entry('alone', 80.0)))
    assert 'lead' not in line and line.endswith('teacher 79.0 %.')


def test_without_a_teacher_or_a_baseline():
    assert verdict(group(entry('alone', 80.0))) == [
        'No run has a teacher; the report shows what they learned without one.'
    ]
    (line,) = verdict(group(entry('mldr', 85.0, model=PAIR)))
    assert line == 'mldr: no run of the student alone to compare with. 85.00 %.'
    other = STUDENT | dict(backbone=dict(type='VGG'))
    assert (
        'no run of the student alone'
        in verdict(group(entry('mldr', 85.0, model=PAIR), entry('alone', 80.0, model=other)))[0]
    )


def recipe(name, accuracy, rate, **kwargs):
    """Return a run with a learning rate."""
    made = entry(name, accuracy, **kwargs)
    made.run.config.optim_wrapper = dict(optimizer=dict(lr=rate))
    return made


def test_the_student_alone_has_the_same_recipe():
    """Of several, in any order; another recipe is named."""
    taught = recipe('mldr', 95.0, 0.1, model=PAIR)
    same, other = recipe('same', 80.0, 0.1, seed=1), recipe('other', 94.0, 0.01)
    for runs in ((taught, same, other), (other, taught, same)):
        (line,) = verdict(group(*runs))
        assert '+15.0 points over the student alone.' in line
    (line,) = verdict(group(taught, other))
    assert line.endswith('student alone, which was trained with another optim_wrapper.')


def test_runs_of_different_lengths_are_not_judged():
    """One was stopped after its first epoch."""
    stopped = entry('mldr_seed1', 50.0, model=PAIR, seed=1)
    del stopped.run.records[1:]
    (line,) = verdict(group(entry('mldr_seed0', 95.0, model=PAIR), stopped, entry('alone', 80.0)))
    assert 'not judged, as the runs end with different epochs, 1 and 2' in line


def test_equal_seeds_are_no_proof():
    """With 16 images, one image is 6.25 points."""
    taught = [entry(f'a_seed{n}', 56.25, model=PAIR, seed=n, images=16) for n in range(2)]
    alone = [entry(f'b_seed{n}', 50.0, seed=n, images=16) for n in range(2)]
    (line,) = verdict(group(*taught, *alone))
    assert 'no clear difference, at a standard error of 17.6 points' in line


def test_different_images_are_not_compared():
    series = group(
        entry('mldr', 85.0, model=PAIR), entry('alone', 80.0, dataset=DIGITS | dict(split='train'))
    )
    first, second = verdict(series)
    assert 'validate on different images' in first and 'split=train' in first
    assert 'no run of the student alone' in second
    sizes = [DIGITS | dict(pipeline=[dict(type='Resize', scale=size)]) for size in (32, 64)]
    assert len({data_set(entry('x', 1.0, dataset=dataset).run) for dataset in sizes}) == 1


def test_parts_of_a_data_set_are_told_apart():
    parts = [dict(DIGITS, indices=indices) for indices in ([0, 1], [2, 3])]
    sets = [*parts, *(dict(type='ConcatDataset', datasets=[part]) for part in parts), DIGITS]
    assert len({data_set(entry('x', 1.0, dataset=dataset).run) for dataset in sets}) == 5


def test_runs_of_one_seed_are_not_grouped():
    series = group(entry('a/run', 80.0), entry('b/run', 80.0), entry('c/run', 80.0, seed=1))
    assert [len(each.entries) for each in series] == [2, 1]
    assert series[0].entries[1].run.name == 'c/run'
    assert series[1].name == 'b/run'

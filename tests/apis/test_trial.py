"""Settings of a trial: stored and read back, and the checkpoint to resume from."""

import json

import pytest
from mmengine.config import Config

from mldr_kd_mm.apis import trial
from mldr_kd_mm.apis.trial import Trial, claim_folder, identity, read_settings
from mldr_kd_mm.utils.errors import ConfigError

SETTINGS = dict(
    model=dict(type='ImageClassifier', input_size=(3, 32, 32), head=None),
    optim_wrapper=dict(optimizer=dict(lr=1e-3, weight_decay=float('inf'))),
)


def make_trial(folder, epochs=9):
    return Trial('a', folder / 'run/trial/config.py', folder / 'run', epochs, None, SETTINGS)


def test_stored_config_is_the_planned_one(tmp_path):
    """Tuples, numbers and None survive storing, so that no run is refused."""
    planned = make_trial(tmp_path)
    planned.prepare()
    planned.check_stored()
    stored = read_settings(planned.config)
    assert stored == planned.all_settings()
    assert isinstance(stored['model']['input_size'], tuple)
    assert identity(stored) == identity(planned.all_settings())


def test_identity_depends_on_values_alone():
    one = dict(a=dict(b=1, c=[2, (3, 4)]), d=None)
    assert identity(one) == identity(dict(d=None, a=dict(c=[2, [3, 4]], b=1)))
    for other in (dict(a=dict(b=1, c=[2, (3, 5)]), d=None), dict(a=dict(b=1, c=[2, (3, 4)]))):
        assert identity(other) != identity(one)


def test_a_field_that_starts_and_places_a_run_does_not_count():
    cfg = Config(dict(SETTINGS, work_dir='a', resume=True, launcher='none', my_note='b'))
    assert trial.settings_of(cfg) == SETTINGS


@pytest.mark.parametrize(
    ('epochs', 'logged', 'saved', 'expected'),
    [
        (9, [], [], None),
        (9, [dict(loss=1, epoch=1, step=4)], [1], None),  # was it validated? was it saved?
        (9, [{'loss': 1, 'epoch': 1, 'step': 4}, {'accuracy/top1': 9, 'step': 1}], [1], 1),
        (9, [{'accuracy/top1': 9, 'step': 5}, {'loss': 1, 'epoch': 7, 'step': 70}], [5, 6], 6),
        (9, [{'accuracy/top1': 9, 'step': 5}, {'loss': 1, 'epoch': 6, 'step': 60}], [5, 6], 5),
        (9, [{'accuracy/top1': 9, 'step': 9}], [8, 9], 8),  # the last epoch is repeated
        (9, [{'accuracy/top1': 9, 'step': 9}], [9], None),
    ],
)
def test_last_checkpoint(tmp_path, epochs, logged, saved, expected):
    planned = make_trial(tmp_path, epochs)
    log = planned.work_dir / '20260101_000000/vis_data/scalars.json'
    log.parent.mkdir(parents=True)
    log.write_text(''.join(f'{json.dumps(record)}\n' for record in logged))
    for epoch in saved:
        (planned.work_dir / f'epoch_{epoch}.pth').touch()
    path = planned.work_dir / f'epoch_{expected}.pth'
    assert planned.last_checkpoint() == (path if expected else None)
    assert planned.arguments() == (['--resume', str(path)] if expected else ['--overwrite'])


def test_stored_settings_are_read_and_not_run(tmp_path):
    path = tmp_path / 'config.py'
    canary = tmp_path / 'canary'
    for evil in (
        f'a = __import__("os").mkdir({str(canary)!r})',
        f'import os; os.mkdir({str(canary)!r})',
        f'a = [{{"b": exec("import os; os.mkdir({str(canary)!r})")}}]',
        "_base_ = 'other.py'; a = _base_.a",
        'a = ' + '[' * 10_000,
        'a.b = 1',
        '\0',
    ):
        path.write_text(evil)
        (tmp_path / 'other.py').write_text(f'import os; os.mkdir({str(canary)!r})')
        with pytest.raises(ConfigError, match='must be a config of plain') as caught:
            read_settings(path)
        assert '\n' not in str(caught.value)
        assert not canary.exists()


def test_an_error_about_a_stored_run_names_the_option(tmp_path):
    planned = make_trial(tmp_path)
    with pytest.raises(ConfigError, match=r'tools/train\.py, use another --work-dir, or remove'):
        planned.check_stored()
    planned.prepare()
    planned.settings = dict(SETTINGS, randomness=dict(seed=1))
    with pytest.raises(ConfigError, match='undo the change, use another --work-dir, or remove'):
        planned.check_stored()
    planned.elsewhere = 'set another model.teacher_checkpoint'
    with pytest.raises(ConfigError, match='undo the change, set another model.teacher_checkpoin'):
        planned.check_stored()


def test_a_folder_of_somebody_else(tmp_path):
    (tmp_path / 'thesis.tex').write_text('precious')
    message = f"--work-dir {tmp_path}: does not belong to a search and holds 'thesis.tex'; give an "
    with pytest.raises(ConfigError) as caught, claim_folder(tmp_path, 'search'):
        pass
    assert str(caught.value) == message + 'empty or a new directory'
    assert [path.name for path in tmp_path.iterdir()] == ['thesis.tex']


def test_a_folder_of_another_owner(tmp_path):
    """A search ends with an error, even while the benchmark runs: it does not wait for its end."""
    message = f'--work-dir {tmp_path}: belongs to a benchmark, not to a search; give an empty or a '
    with claim_folder(tmp_path, 'benchmark'):
        with pytest.raises(ConfigError) as caught, claim_folder(tmp_path, 'search', wait=True):
            pass
        assert str(caught.value) == message + 'new directory'
    with pytest.raises(ConfigError, match='not to a search'), claim_folder(tmp_path, 'search'):
        pass
    with claim_folder(tmp_path, 'benchmark'):
        pass


def test_a_folder_of_an_earlier_version(tmp_path):
    """Its lock file does not name an owner."""
    (tmp_path / '.lock').touch()
    for _ in range(2):
        with claim_folder(tmp_path, 'search'):
            pass
    with pytest.raises(ConfigError, match='belongs to a search'), claim_folder(tmp_path, 'bench'):
        pass

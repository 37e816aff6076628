"""Logs, configs and checkpoints of runs, read back."""

import json
import os
import shutil
from pathlib import Path

import pytest
import torch
from helpers import mldr, resnet, train

from mldr_kd_mm.evaluation.logged_run import LoggedRun, curve, read_records
from mldr_kd_mm.utils.errors import ConfigError
from mldr_kd_mm.utils.run_identity import RunIdentity, new_id


def write(work_dir, part, *records, end='\n'):
    """Write the log of one part of a resumed run."""
    log = work_dir / part / 'vis_data/scalars.json'
    log.parent.mkdir(parents=True)
    log.write_text('\n'.join(json.dumps(record) for record in records) + end)


def test_curve_of_a_run_in_two_parts(tmp_path):
    first = [
        dict(loss=3.0, epoch=1, step=10),
        dict(acc=5.0, step=1),
        dict(loss=2.5, epoch=2, step=20),
    ]
    write(tmp_path, '20260101_000000', *first)
    write(tmp_path, '20260101_010000', dict(loss=2.0, epoch=2, step=20), dict(acc=7.0, step=2))
    records = read_records(tmp_path)
    assert curve(records, 'loss') == {1: 3.0, 2: 2.0}
    assert curve(records, 'acc') == {1: 5.0, 2: 7.0}
    assert curve(records, 'lost') == {}


def test_parts_are_read_in_the_order_of_their_start(tmp_path):
    """Their names are local times, which go back when summer ends; a part may be of another run."""
    parts = ['20261025_025900', '20261025_020100']
    RunIdentity(new_id(), '', logs=('20261001_000000', *parts)).write(tmp_path)
    for value, part in enumerate(['20250101_000000', *parts, '20261025_020000', '20261025_030000']):
        write(tmp_path, part, dict(loss=float(value), epoch=1, step=value))
    # The last one has not saved a checkpoint yet.
    assert [record['step'] for record in read_records(tmp_path)] == [1, 2, 4]


def test_line_that_is_half_written(tmp_path):
    write(tmp_path, 'a', dict(loss=3.0, step=1), dict(loss=2.0, step=2), end='\n{"loss": 1.')
    assert curve(read_records(tmp_path), 'loss') == {1: 3.0, 2: 2.0}


def test_no_run(tmp_path):
    with pytest.raises(
        ConfigError, match='must be the work directory of a run; it has no .*scalars'
    ):
        LoggedRun.read(tmp_path, 'none')
    write(tmp_path, 'a', dict(loss=3.0, step=1))
    with pytest.raises(ConfigError, match='it has no .*config.py'):
        LoggedRun.read(tmp_path, 'none')


@pytest.mark.parametrize(
    'content',
    [
        b'\xff\xfe\n',
        b'[' * 10_000 + b'\n',
        b'{"step": %s}\n' % (b'9' * 5000),
        b'{"step": "1"}\n',
        b'{"step": true}\n',
        b'{"step": 1, "epoch": [1]}\n',
        b'{"step": 1, "epoch": null}\n',
        b'{"loss": 1}\n',
        b'[1]\n',
        b'7\n',
    ],
)
def test_what_is_no_log(tmp_path, content):
    write(tmp_path, 'a')
    (tmp_path / 'a/vis_data/scalars.json').write_bytes(content)
    with pytest.raises(ConfigError, match='scalars.json: must be the log of a run ') as caught:
        read_records(tmp_path)
    assert str(caught.value).isprintable()


def test_values_that_are_no_numbers_are_not_on_the_curve(tmp_path):
    write(tmp_path, 'a', dict(step=1, loss='high'), dict(step=2, loss=[1]), dict(step=3, loss=2.0))
    assert curve(read_records(tmp_path), 'loss') == {3: 2.0}


@pytest.mark.parametrize(
    ('content', 'message'),
    [
        (b'\xff', '.* decode'),
        (b'a = ' + b'0' * 1_000_001, 'larger than 1 MB'),
        (b'model = 3', 'model: must be a dict'),
    ],
)
def test_what_is_no_config_of_a_run(tmp_path, content, message):
    write(tmp_path, 'a', dict(step=1))
    (tmp_path / 'a/vis_data/config.py').write_bytes(content)
    with pytest.raises(ConfigError, match=f'config.py: {message}') as caught:
        LoggedRun.read(tmp_path, 'none')
    assert str(caught.value).isprintable()


@pytest.fixture(scope='module')
def trained(tmp_path_factory):
    """Return Runners that trained a student with a teacher and without one."""
    folder = tmp_path_factory.mktemp('runs')
    alone = resnet(data_preprocessor=dict(num_classes=10))
    return dict(mldr=train(mldr(), folder / 'mldr'), alone=train(alone, folder / 'alone'))


@pytest.mark.parametrize('kind', ['mldr', 'alone'])
def test_model_is_the_one_that_was_trained(trained, kind):
    runner = trained[kind]
    run = LoggedRun.read(Path(runner.work_dir), kind)
    assert run.has_teacher == (kind == 'mldr')
    model = run.build_model(run.checkpoint())
    assert not any(module.training for module in model.modules())
    for name, value in runner.model.state_dict().items():
        assert torch.equal(model.state_dict()[name], value), name
    student = getattr(model, 'student', model)
    count = sum(p.numel() for p in run.build_student().parameters())
    assert count == sum(p.numel() for p in student.parameters())


@pytest.mark.parametrize('kind', ['mldr', 'alone'])
def test_model_with_an_exported_student(trained, kind):
    """The neck of a Distiller would have random weights."""
    runner = trained[kind]
    weights = getattr(runner.model, 'student', runner.model).state_dict()
    model = LoggedRun.read(Path(runner.work_dir), kind).build_model({'model': weights})
    for name, value in getattr(model, 'student', model).state_dict().items():
        assert torch.equal(weights[name], value), name
    assert getattr(model, 'neck', None) is None or kind == 'alone'


def test_model_with_the_teachers_checkpoint(trained):
    run = LoggedRun.read(Path(trained['mldr'].work_dir), 'mldr')
    with pytest.raises(ConfigError, match="does not fit the config: has the teacher's weights"):
        run.build_model({'state_dict': trained['mldr'].model.teacher.model.state_dict()})


def test_checkpoint_by_name(trained, tmp_path):
    work_dir = tmp_path / 'run'
    shutil.copytree(trained['alone'].work_dir, work_dir)
    run = LoggedRun.read(work_dir, 'run')
    with pytest.raises(FileNotFoundError, match='lost.pth'):
        run.checkpoint('lost.pth')
    for epoch, name in ((0, 'epoch_0.pth'), (9, 'best_accuracy_top1_epoch_9.pth')):
        torch.save(dict(meta=dict(epoch=epoch, iter=3 * epoch)), work_dir / name)
    torch.save(dict(meta=dict(dataset_meta={}), state_dict={}), work_dir / 'student_10.pth')
    for path in work_dir.glob('*.pth'):
        os.utime(path, (0, 0))
    assert run.checkpoint()['meta']['epoch'] == 1, 'the higher number, not the best one'
    (work_dir / 'last_checkpoint').write_text('/moved/from/here/epoch_0.pth')
    assert run.checkpoint()['meta']['epoch'] == 0, 'saved last, by a run that went back'
    (work_dir / 'last_checkpoint').unlink()
    os.utime(work_dir / 'epoch_0.pth')
    assert run.checkpoint()['meta']['epoch'] == 1, 'the other was copied last'
    assert run.checkpoint('epoch_1.pth')['meta']['epoch'] == 1
    for path in work_dir.glob('epoch_*.pth'):
        path.unlink()
    assert run.checkpoint()['meta']['epoch'] == 9
    (work_dir / 'best_accuracy_top1_epoch_9.pth').unlink()
    with pytest.raises(FileNotFoundError, match='there is no checkpoint of this run'):
        run.checkpoint()


def test_checkpoint_of_another_run(tmp_path):
    """It may be the newest in the directory."""
    write(tmp_path, 'part', dict(loss=1.0, step=1))
    (tmp_path / 'part/vis_data/config.py').write_text('')
    own, other = new_id(), new_id()
    for run, name in ((own, 'epoch_1.pth'), (other, 'epoch_2.pth')):
        torch.save(dict(meta=dict(epoch=1, iter=3, run=dict(id=run))), tmp_path / name)
    run = LoggedRun.read(tmp_path, 'run')
    for wanted in (own, other):
        RunIdentity(wanted, '').write(tmp_path)
        assert run.checkpoint()['meta']['run']['id'] == wanted


def test_samples_are_spread_over_the_set(trained):
    def labels(samples):
        batches = run.validation_batches(samples)
        return [int(sample.gt_label) for batch in batches for sample in batch['data_samples']]

    run = LoggedRun.read(Path(trained['alone'].work_dir), 'run')
    everything = labels(1000)
    assert len(everything) == 30
    assert labels(10) == [everything[round(i * 29 / 9)] for i in range(10)]

"""The record of a run: stored with its files, and never trusted."""

from __future__ import annotations

import json
import os
from dataclasses import asdict

import pytest
import torch
from mmengine.config import Config

from mldr_kd_mm.utils.run_identity import (
    Origin,
    RunIdentity,
    current_launches,
    fingerprint,
    new_id,
    was_restarted,
)

RUN = RunIdentity(
    new_id(),
    'f' * 64,
    new_id(),
    (Origin(new_id(), 2, 8), Origin('', 1, 4)),
    ('slurm 7',),
    ('2026',),
)


def test_is_read_as_it_was_written(tmp_path):
    elsewhere = tmp_path / 'elsewhere'
    elsewhere.write_text('of another program')
    (tmp_path / 'run.json').symlink_to(elsewhere)

    RUN.write(tmp_path)

    assert RunIdentity.read(tmp_path) == RUN
    assert elsewhere.read_text() == 'of another program'


@pytest.mark.parametrize(
    'content',
    [b'', b'\0' * 100, b'\xff', b'[' * 10_000, b'[]', b'{}', json.dumps(asdict(RUN)).encode()[:-5]],
)
def test_a_damaged_record_is_none(tmp_path, content):
    assert RunIdentity.read(tmp_path) is None
    (tmp_path / 'run.json').write_bytes(content)
    assert RunIdentity.read(tmp_path) is None


@pytest.mark.parametrize(
    'change',
    [
        dict(id='../epoch_1'),
        dict(id=1),
        dict(fingerprint=None),
        dict(parent=''),
        dict(history=[[RUN.id, 1]]),
        dict(history=[[RUN.id, '1', 2]]),
        dict(history=None),
        dict(launches=[1]),
        dict(logs=['../other']),
        dict(logs=['/etc']),
    ],
)
def test_a_record_of_wrong_types_is_none(tmp_path, change):
    (tmp_path / 'run.json').write_text(json.dumps(asdict(RUN) | change))
    assert RunIdentity.read(tmp_path) is None


@pytest.mark.parametrize('make', [os.mkfifo, os.mkdir])
def test_a_record_that_is_no_file(tmp_path, make):
    make(tmp_path / 'run.json')
    assert RunIdentity.read(tmp_path) is None


def test_owns_its_checkpoints_and_those_before_it():
    (early, last) = RUN.history
    assert RUN.owns(Origin(RUN.id, 9, 99))
    assert RUN.owns(early) and RUN.owns(early._replace(epoch=1, iteration=9))
    assert not RUN.owns(early._replace(iteration=9))
    assert RUN.owns(last) and not RUN.owns(Origin('', 2, 0))
    assert not RUN.owns(Origin(new_id(), 0, 0))


class TestOrigin:
    def test_of_a_file(self, tmp_path):
        path = tmp_path / 'epoch_1.pth'
        torch.save(dict(meta=dict(epoch=1, iter=4, run=RUN.to_meta()), weights=torch.ones(9)), path)
        assert Origin.read(path) == Origin(RUN.id, 1, 4)

    @pytest.mark.parametrize('run', [None, 'x', {}, dict(id='../x'), dict(id=[])])
    def test_without_an_id(self, run):
        assert Origin.of(dict(meta=dict(epoch=1, iter=4, run=run))) == Origin('', 1, 4)

    def test_of_weights(self):
        assert Origin.of(dict(state_dict={}, meta={})) is None

    def test_of_a_directory(self, tmp_path):
        assert Origin.read(tmp_path) == Origin('', 0, 0)
        RUN.write_to_checkpoint(tmp_path, dict(epoch=2, iter=8))
        assert Origin.read(tmp_path) == Origin(RUN.id, 2, 8)


class TestFingerprint:
    def config(self, tmp_path):
        return Config(
            dict(
                model=dict(type='Distiller', teacher_checkpoint=str(tmp_path / 'teacher.pth')),
                train_dataloader=dict(batch_size=8, num_workers=2, dataset=dict(type='Digits')),
                optim_wrapper=dict(optimizer=dict(type='SGD', lr=0.1, betas=(0.9, 0.99))),
                train_cfg=dict(max_epochs=3),
                randomness=dict(seed=0),
                custom_hooks=[dict(type=Origin)],
                work_dir='one',
            )
        )

    @pytest.mark.parametrize(
        'change', [{'work_dir': 'two'}, {'train_dataloader.num_workers': 0}, {'log_level': 'ERROR'}]
    )
    def test_is_the_same(self, tmp_path, change):
        cfg = self.config(tmp_path)
        wanted = fingerprint(cfg)
        cfg.merge_from_dict(change)
        assert fingerprint(cfg) == wanted

    @pytest.mark.parametrize(
        'change',
        [
            {'optim_wrapper.optimizer.lr': 0.2},
            {'train_dataloader.batch_size': 9},
            {'train_cfg.max_epochs': 4},
            {'randomness.seed': 1},
            {'model.neck': dict(type='MSDFNeck')},
        ],
    )
    def test_differs(self, tmp_path, change):
        cfg = self.config(tmp_path)
        before = fingerprint(cfg)
        cfg.merge_from_dict(change)
        assert fingerprint(cfg) != before

    def test_depends_on_the_processes_and_the_teacher_but_not_on_its_path(self, tmp_path):
        cfg = self.config(tmp_path)
        assert fingerprint(cfg, 1) != fingerprint(cfg, 2)
        found = set()
        for name, content in [('teacher', 'a'), ('teacher', 'b'), ('copy', 'b')]:
            path = tmp_path / f'{name}.pth'
            path.write_text(content)
            cfg.model.teacher_checkpoint = str(path)
            found.add(fingerprint(cfg))
        assert len(found) == 2


@pytest.mark.parametrize(
    'count, job', [('TORCHELASTIC', 'MLDR_KD_LAUNCH'), ('SLURM', 'SLURM_JOB_ID')]
)
def test_a_restart_is_of_the_same_launch(monkeypatch, count, job):
    for name in list(os.environ):
        if name.startswith(('SLURM', 'TORCHELASTIC', 'MLDR_KD')):
            monkeypatch.delenv(name)
    assert current_launches() == ()
    monkeypatch.setenv(f'{count}_RESTART_COUNT', '0')
    monkeypatch.setenv(job, '7')
    record = RunIdentity(new_id(), '', launches=current_launches())

    assert not was_restarted(record)
    monkeypatch.setenv(f'{count}_RESTART_COUNT', '1')
    assert was_restarted(record)
    assert not was_restarted(None)
    monkeypatch.setenv(job, '8')
    assert not was_restarted(record)

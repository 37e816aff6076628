"""A run that stops distillation, and what it leaves to train."""

from __future__ import annotations

import json
from types import SimpleNamespace

import pytest
import torch
from helpers import batch, mldr, train
from mmengine.runner import EpochBasedTrainLoop, IterBasedTrainLoop

from mldr_kd_mm import ConfigError
from mldr_kd_mm.datasets import UnlabeledFolder
from mldr_kd_mm.engine.hooks import StopDistillHook
from mldr_kd_mm.models.distillers.teacher import Teacher
from mldr_kd_mm.registry import MODELS

RKD = dict(loss=dict(type='RKDLoss'), student='feature', teacher='feature', name='rkd')


def test_the_student_trains_alone_after_it(tmp_path, monkeypatch):
    calls, read = [], Teacher.read
    monkeypatch.setattr(Teacher, 'read', lambda *args: calls.append(1) or read(*args))
    runner = train(
        mldr(losses=[RKD, *mldr()['losses']]),
        tmp_path / 'run',
        max_epochs=3,
        custom_hooks=[dict(type='StopDistillHook', stop_epoch=1)],
        default_hooks=dict(logger=dict(type='LoggerHook', interval=1)),
        val_cfg=None,
        val_dataloader=None,
        val_evaluator=None,
    )
    assert len(calls) == 4  # the batches of the first epoch
    path = next((tmp_path / 'run').glob('*/vis_data/scalars.json'))
    lines = [json.loads(line) for line in path.read_text().splitlines()]
    assert ['loss_rkd_feature' in line for line in lines] == 4 * [True] + 8 * [False]
    assert all(line['loss_stopped'] == 0 and line['loss'] > 0 for line in lines[4:])
    assert runner.model.distillation_stopped


def test_every_parameter_keeps_a_gradient():
    """DistributedDataParallel waits for each, also if a weight is not finite."""
    model = MODELS.build(mldr())
    model.distillation_stopped = True
    torch.nn.init.constant_(next(model.neck.parameters()), float('nan'))
    total, _ = model.parse_losses(model(**model.data_preprocessor(batch(), True), mode='loss'))
    total.backward()
    assert total.isfinite()
    assert all(p.grad is not None for p in model.parameters())
    assert not any(p.grad.any() for p in model.neck.parameters())


def test_a_resumed_run_stops_at_once():
    model = MODELS.build(mldr())
    hub, logger = SimpleNamespace(log_scalars={}), SimpleNamespace(info=lambda text: None)
    runner = SimpleNamespace(model=model, epoch=7, logger=logger, message_hub=hub)
    StopDistillHook(stop_epoch=8).before_train_epoch(runner)
    assert not model.distillation_stopped
    StopDistillHook(stop_epoch=5).before_train_epoch(runner)
    assert model.distillation_stopped


def test_the_own_loss_keeps_its_weight():
    own = []
    for weight in (1.0, 0.5):
        model = MODELS.build(mldr(student_loss_weight=weight)).eval()
        model.student.load_state_dict(MODELS.build(mldr()).student.state_dict())
        model.distillation_stopped = True
        torch.manual_seed(0)
        for parameter in model.student.parameters():
            torch.nn.init.normal_(parameter, std=0.1)
        data = model.data_preprocessor(batch())
        own.append(model(**data, mode='loss')['loss'].item())
    assert own[1] == pytest.approx(own[0] / 2)


class TestErrors:
    def message(self, model, loop=None, dataset=None) -> str:
        loader = SimpleNamespace(dataset=dataset)
        runner = SimpleNamespace(model=model, train_loop=loop, train_dataloader=loader)
        with pytest.raises(ConfigError) as caught:
            StopDistillHook(1).before_train(runner)
        return str(caught.value)

    def test_images_without_labels(self):
        """Weight decay alone would shrink the student."""
        loop = EpochBasedTrainLoop.__new__(EpochBasedTrainLoop)
        images = UnlabeledFolder.__new__(UnlabeledFolder)
        message = self.message(MODELS.build(mldr()), loop, images)
        assert message == 'StopDistillHook: the student must have labels, to be trained alone'

    @pytest.mark.parametrize('epoch', [0, -1, 1.5, None])
    def test_epoch(self, epoch):
        with pytest.raises(ConfigError, match=f'^stop_epoch={epoch}: must be a positive integer$'):
            StopDistillHook(epoch)

    def test_run_that_counts_iterations(self):
        loop = IterBasedTrainLoop.__new__(IterBasedTrainLoop)
        message = self.message(MODELS.build(mldr()), loop)
        assert message == 'StopDistillHook: train_cfg.by_epoch must be True'

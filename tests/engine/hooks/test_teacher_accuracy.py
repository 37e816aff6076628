"""The teacher's accuracy before training, in mmengine's real Runner."""

import json

import pytest
import torch
from helpers import mldr, resnet, train, vit
from mmengine.dataset import pseudo_collate

from mldr_kd_mm.datasets import Digits
from mldr_kd_mm.registry import MODELS
from mldr_kd_mm.utils.checkpoint import load_checkpoint


@pytest.fixture(scope='module')
def teacher_checkpoint(tmp_path_factory):
    """Return the checkpoint of a trained teacher, whose accuracy is above chance."""
    work_dir = tmp_path_factory.mktemp('teacher')
    optim_wrapper = dict(optimizer=dict(type='Adam', lr=3e-3))
    train(teacher(), work_dir, max_epochs=12, optim_wrapper=optim_wrapper)
    return str(work_dir / 'epoch_12.pth')


def teacher():
    """Return the config of the teacher."""
    return vit(data_preprocessor=dict(mean=[0.0] * 3, std=[255.0] * 3, num_classes=10))


def logged(work_dir):
    """Return the scalars that a run logged."""
    path = next(work_dir.glob('*/vis_data/scalars.json'))
    return [json.loads(line) for line in path.read_text().splitlines()]


def test_is_the_accuracy_of_the_teacher_alone(tmp_path, teacher_checkpoint):
    train(mldr(teacher=teacher(), teacher_checkpoint=teacher_checkpoint), tmp_path / 'run')

    model = MODELS.build(teacher()).eval()
    model.load_state_dict(load_checkpoint(teacher_checkpoint)['state_dict'])
    data = Digits('test', subset=dict(per_class=3), pipeline=[dict(type='mmpretrain.PackInputs')])
    batch = model.data_preprocessor(pseudo_collate(list(data)), False)
    samples = model.predict(**batch)
    correct = sum(int(sample.pred_label == sample.gt_label) for sample in samples)

    value = next(line for line in logged(tmp_path / 'run') if 'teacher/accuracy/top1' in line)
    assert value['teacher/accuracy/top1'] == pytest.approx(100 * correct / 30, abs=1e-3)
    assert value['teacher/accuracy/top1'] > 20
    text = next((tmp_path / 'run').glob('*/*.log')).read_text()
    assert text.index('Teacher on the validation set: accuracy/top1') < text.index('Epoch(train)')


def test_changes_nothing_that_is_trained(tmp_path):
    measured = train(mldr(), tmp_path / 'on')
    hooks = dict(
        logger=dict(type='LoggerHook', interval=1),
        teacher_accuracy=dict(type='TeacherAccuracyHook', enabled=False),
    )
    plain = train(mldr(), tmp_path / 'off', default_hooks=hooks)
    assert not any('teacher/accuracy/top1' in line for line in logged(tmp_path / 'off'))
    assert 'Teacher on' not in next((tmp_path / 'off').glob('*/*.log')).read_text()
    for (name, a), b in zip(
        measured.model.state_dict().items(), plain.model.state_dict().values(), strict=True
    ):
        assert torch.equal(a, b), name


def test_is_left_out_without_validation(tmp_path):
    train(mldr(), tmp_path / 'run', val_dataloader=None, val_evaluator=None, val_cfg=None)
    assert 'Teacher on' not in next((tmp_path / 'run').glob('*/*.log')).read_text()


def test_is_left_out_for_other_models(tmp_path):
    train(resnet(data_preprocessor=dict(num_classes=10)), tmp_path / 'run')
    assert 'Teacher on' not in next((tmp_path / 'run').glob('*/*.log')).read_text()


def test_is_left_out_for_a_teacher_of_other_classes(tmp_path):
    losses = [dict(loss=dict(type='RKDLoss'), student='feature', teacher='feature')]
    run = train(mldr(teacher=vit(num_classes=7), losses=losses, neck=None), tmp_path / 'run')
    assert 'teacher_metrics' not in run.message_hub.runtime_info
    text = next((tmp_path / 'run').glob('*/*.log')).read_text()
    assert 'The teacher has 7 classes, the student 10; its accuracy is not measured' in text

"""Outputs that the Observer collects, compared with those of the models run by hand."""

import copy

import numpy as np
import pytest
import torch
from helpers import batch, mldr, resnet, timm_resnet, vit

from mldr_kd_mm.evaluation.observer import Observer
from mldr_kd_mm.registry import MODELS


def observe(model, *seeds):
    """Observe a batch of 8 for each seed; return the observations and the last batch."""
    observer = Observer(model)
    for seed in seeds:
        data = model.data_preprocessor(batch(seed=seed), False)
        observer.add(**data)
    return observer.observations(), data


@torch.no_grad()
def test_both_models_by_hand():
    model = MODELS.build(mldr()).eval()
    seen, data = observe(model, 0, 1)
    labels = [int(sample.gt_label) for sample in data['data_samples']]
    assert seen.labels[8:].tolist() == labels
    np.testing.assert_allclose(seen.student[8:], model.student(data['inputs']), atol=1e-5)
    teacher = model.teacher.model(model.teacher.prepare(data['inputs']))
    np.testing.assert_allclose(seen.teacher[8:], teacher, atol=1e-5)

    with model.tapped_student.recorder(model.student) as record:
        model.student(data['inputs'])
    output = model.neck([record[f'stage{i}'] for i in (1, 2, 3, 4)])
    np.testing.assert_allclose(seen.fused[8:], output.fused_logits, atol=1e-5)
    mean = record['stage2'].mean((2, 3))
    np.testing.assert_allclose(seen.student_stages['stage2'][8:], mean, atol=1e-5)
    assert list(seen.student_stages) == list(seen.teacher_stages)
    assert seen.teacher_stages['stage4'].shape == (16, 32)
    assert seen.fusion_weights.shape == (4, 10)
    np.testing.assert_allclose(seen.fusion_weights.sum(0), 1, atol=1e-5)


def test_order_of_custom_taps():
    taps = {f'stage{i}': f'backbone.layer{i}' for i in (4, 2, 3, 1)}
    recorder = dict(type='FeatureRecorder', taps=taps | dict(stem='backbone.conv1'))
    model = MODELS.build(mldr(student_recorder=recorder)).eval()
    seen, _ = observe(model, 0)
    assert {name: stage.shape[1] for name, stage in seen.student_stages.items()} == dict(
        stage1=8, stage2=16, stage3=32, stage4=64
    )


@pytest.mark.parametrize('student', [resnet(), vit(), timm_resnet()], ids=['map', 'tokens', 'timm'])
def test_changes_nothing(student):
    losses = [dict(loss=dict(type='KDLoss'))]
    model = MODELS.build(mldr(student=student, neck=None, losses=losses)).eval()
    taps = copy.copy((model.tapped_student.recorder.taps, model.teacher.recorder.taps))
    state = {name: value.clone() for name, value in model.state_dict().items()}
    random = torch.get_rng_state()
    seen, _ = observe(model, 0)
    assert seen.fused is None and seen.fusion_weights is None
    assert len(seen.student_stages) == 4
    assert torch.equal(torch.get_rng_state(), random)
    assert (model.tapped_student.recorder.taps, model.teacher.recorder.taps) == taps
    for name, value in model.state_dict().items():
        assert torch.equal(value, state[name]), name


def test_classifier_alone():
    model = MODELS.build(resnet(data_preprocessor=dict(num_classes=10))).eval()
    seen, data = observe(model, 0)
    np.testing.assert_allclose(seen.student, model(data['inputs']).detach(), atol=1e-6)
    assert seen.teacher is None and not seen.student_stages

"""Building classifiers; test_distiller.py tests how nested ones load."""

import pytest
import timm
import torch
from helpers import NUM_CLASSES, mldr, resnet, timm_resnet

from mldr_kd_mm.models.builder import build_classifier
from mldr_kd_mm.registry import MODELS


@pytest.fixture
def weights(tmp_path):
    """Return a file that timm loads when it creates the model, and its content."""
    torch.manual_seed(7)
    model = timm.create_model('resnet10t', num_classes=NUM_CLASSES)
    torch.save(model.state_dict(), tmp_path / 'weights.pth')
    return str(tmp_path / 'weights.pth'), model.state_dict()


def same(model, expected):
    return all(torch.equal(value, expected[name]) for name, value in model.state_dict().items())


def test_init_weights_keeps_what_timm_loaded(weights):
    path, expected = weights
    config = timm_resnet(checkpoint_path=path)
    plain = MODELS.build(config)
    plain.init_weights()
    assert not same(plain.model, expected), 'mmpretrain has fixed this; remove build_classifier'
    classifier = build_classifier(config)
    classifier.init_weights()
    assert same(classifier.model, expected)


def test_teacher_and_student_keep_it(weights):
    path, expected = weights
    pretrained = timm_resnet(checkpoint_path=path)
    distiller = MODELS.build(mldr(teacher=pretrained, student=pretrained))
    distiller.init_weights()
    assert same(distiller.teacher.model.model, expected)
    assert same(distiller.student.model, expected)


@pytest.mark.parametrize('config', [resnet, timm_resnet])
def test_others_are_initialised(config):
    classifier = build_classifier(config())
    before = {name: value.clone() for name, value in classifier.state_dict().items()}
    classifier.init_weights()
    assert not same(classifier, before)

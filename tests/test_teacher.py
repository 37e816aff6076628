"""The teacher: its weights are verified, and it stays frozen and out of the way."""

from __future__ import annotations

import copy
import logging

import pytest
import timm
import torch
import torch.nn.functional as F
from helpers import NUM_CLASSES, batch, mldr, resnet, timm_resnet, vit
from mmengine.logging import MMLogger
from torch.testing import assert_close

from mldr_kd_mm import ConfigError, FeatureRecorder
from mldr_kd_mm.registry import MODELS
from mldr_kd_mm.teacher import Teacher, load_weights

FIELD = 'teacher_checkpoint'
CONFIGS = dict(mmpretrain=resnet, vit=vit, timm=timm_resnet)


def teach(config, checkpoint=None, taps=None, size=None) -> Teacher:
    return Teacher(config, checkpoint, FeatureRecorder({} if taps is None else taps), size)


def weights_of(config, seed=1) -> dict[str, torch.Tensor]:
    """The weights of a model that has learned something: none is what a new one has."""
    generator = torch.Generator().manual_seed(seed)
    weights = MODELS.build(config).state_dict()
    return {
        name: value + 0.1 * torch.rand(value.shape, generator=generator)
        if value.is_floating_point()
        else value + 1
        for name, value in weights.items()
    }


def save(tmp_path, weights) -> str:
    path = str(tmp_path / 'teacher.pth')
    torch.save(dict(state_dict=weights), path)
    return path


def images(size=4, pixels=32, seed=0) -> torch.Tensor:
    return torch.randn(size, 3, pixels, pixels, generator=torch.Generator().manual_seed(seed))


def refuses(error, call) -> str:
    with pytest.raises(error) as caught:
        call()
    assert '\n' not in str(caught.value)
    return str(caught.value)


@pytest.mark.parametrize('config', CONFIGS.values(), ids=CONFIGS)
class TestWeights:
    @pytest.fixture
    def weights(self, config):
        return weights_of(config())

    def test_all_are_loaded(self, config, weights, tmp_path):
        teacher = teach(config(), save(tmp_path, weights))
        assert_close(dict(teacher.model.state_dict()), weights, rtol=0, atol=0)

    def test_are_counted(self, config, weights, tmp_path):
        path = save(tmp_path, weights | {'extra.weight': torch.ones(1), 'other': torch.ones(1)})
        report = load_weights(MODELS.build(config()), path, FIELD)
        assert report.matched == len(weights)
        assert report.missing == []
        assert len(report.unexpected) == 2
        assert str(report) == f'{len(weights)} weights matched, 0 missing, 2 unexpected'

    def test_missing(self, config, weights, tmp_path):
        # Batch norms do without their counters.
        lost = [name for name in weights if 'num_batches' not in name][3:9]
        path = save(tmp_path, {name: v for name, v in weights.items() if name not in lost})
        message = refuses(ConfigError, lambda: teach(config(), path))
        assert message.startswith(
            f'{FIELD}={path!r}: {len(weights) - 6} weights matched, 6 missing'
        )
        assert all(name in message for name in lost[:4])
        assert 'and 2 more' in message

    def test_of_another_model(self, config, tmp_path):
        path = save(tmp_path, {'conv.weight': torch.ones(3), 'conv.bias': torch.ones(3)})
        message = refuses(ConfigError, lambda: teach(config(), path))
        assert ' 0 weights matched' in message
        assert 'conv.weight' in message

    def test_of_another_number_of_classes(self, config, tmp_path):
        path = save(tmp_path, weights_of(config(num_classes=7)))
        message = refuses(ConfigError, lambda: teach(config(), path))
        assert message.startswith(f'{FIELD}={path!r}: size mismatch for ')
        assert 'head' in message or 'fc' in message
        assert '[7' in message
        assert f'[{NUM_CLASSES}' in message

    def test_are_not_initialised_over(self, config, weights, tmp_path):
        teacher = teach(config(), save(tmp_path, weights))
        teacher.init_weights()
        assert_close(dict(teacher.model.state_dict()), weights, rtol=0, atol=0)


def test_the_report_is_logged(tmp_path):
    class Lines(logging.Handler):
        def emit(self, record):
            lines.append(record.getMessage())

    lines, handler, logger = [], Lines(), MMLogger.get_current_instance()
    logger.addHandler(handler)
    try:
        weights = weights_of(resnet())
        path = save(tmp_path, weights)
        teach(resnet(), path)
    finally:
        logger.removeHandler(handler)
    assert f'{FIELD}={path!r}: {len(weights)} weights matched, 0 missing, 0 unexpected' in lines


def test_weights_as_timm_saves_them(tmp_path):
    torch.manual_seed(0)
    plain = timm.create_model('resnet10t', num_classes=NUM_CLASSES).eval()
    path = save(tmp_path, plain.state_dict())
    logits = teach(timm_resnet(), path)(images())['logits']
    assert_close(logits, plain(images()), rtol=0, atol=0)


def test_a_missing_file(tmp_path):
    path = str(tmp_path / 'absent.pth')
    message = refuses(FileNotFoundError, lambda: teach(resnet(), path))
    assert message.startswith(f'{FIELD}={path!r}: ')
    assert 'configs/teachers' in message


def test_without_a_checkpoint_its_config_initialises_it():
    torch.manual_seed(0)
    teacher = teach(vit())
    torch.manual_seed(0)
    expected = MODELS.build(vit())
    for model in (teacher, expected):
        torch.manual_seed(1)
        model.init_weights()
    assert_close(teacher.model.state_dict(), expected.state_dict(), rtol=0, atol=0)
    assert not teacher.model.head.layers.head.weight.any()  # mmpretrain's choice, not torch's


class TestFrozen:
    @pytest.fixture
    def distiller(self):
        """With a teacher whose drop-path and batch norms would be noise in training mode."""
        return MODELS.build(mldr(teacher=vit(), student=resnet())).train()

    def test_is_in_eval_mode_under_a_training_student(self, distiller):
        assert distiller.student.training
        assert not any(module.training for module in distiller.teacher.model.modules())

    @pytest.mark.parametrize('config', CONFIGS.values(), ids=CONFIGS)
    def test_gives_the_same_twice_and_changes_nothing(self, config):
        teacher = teach(config())
        before = copy.deepcopy(teacher.model.state_dict())
        assert_close(teacher(images()), teacher(images()), rtol=0, atol=0)
        assert_close(teacher.model.state_dict(), before, rtol=0, atol=0)

    def test_has_no_gradient(self, distiller):
        teacher = distiller.teacher
        assert not any(p.requires_grad for p in teacher.model.parameters())
        inputs = images().requires_grad_()
        record = teacher(inputs, ['logits', 'feature'])
        assert not any(tensor.requires_grad for tensor in record.values())

    def test_is_shared_by_copies(self, distiller):
        assert copy.deepcopy(distiller).teacher is distiller.teacher


class TestRecord:
    def test_logits_are_the_models(self):
        teacher = teach(resnet())
        record = teacher(images())
        assert list(record) == ['logits']
        assert_close(record['logits'], teacher.model(images()), rtol=0, atol=0)

    @pytest.mark.parametrize(
        ('names', 'attached'),
        [(['logits'], 0), ([], 0), (['feature'], 1), (['feature', 'logits', 'deep'], 2)],
    )
    def test_only_what_is_asked_for(self, names, attached):
        teacher = teach(resnet(), taps=dict(deep='backbone.layer3', unused='backbone.layer2'))
        counts = []

        def count(model, args):
            modules = list(model.modules())
            counts.append(sum(len(m._forward_hooks) + len(m._forward_pre_hooks) for m in modules))

        teacher.model.register_forward_pre_hook(count)
        record = teacher(images(), names)
        assert counts == [1 + attached]
        assert set(record) == {'logits', *names}

    def test_stages(self):
        record = teach(resnet(), taps='stages')(images(), ['stage1', 'stage4', 'feature'])
        assert record['stage1'].shape == (4, 8, 32, 32)
        assert record['stage4'].shape == (4, 64, 4, 4)
        assert record['feature'].shape == (4, 64)

    def test_a_name_that_nobody_records(self):
        message = refuses(ConfigError, lambda: teach(resnet())(images(), ['stage1']))
        assert message == "'stage1' is not recorded; there are: logits, feature"

    def test_predictions(self):
        teacher = teach(resnet())
        samples = teacher.predict(images(), batch(4)['data_samples'])
        expected = teacher(images())['logits'].argmax(1)
        assert [sample.pred_label.item() for sample in samples] == expected.tolist()


class TestSize:
    @pytest.mark.parametrize(
        ('config', 'size', 'expected'),
        [
            (vit(img_size=32), None, (32, 32)),
            (vit(img_size=64), None, (64, 64)),
            (resnet(), None, (48, 40)),
            (resnet(), (24, 16), (24, 16)),
        ],
        ids=['declared', 'declared larger', 'any', 'given'],
    )
    def test_images_are_brought_to(self, config, size, expected):
        teacher, inputs = teach(config, size=size), images(pixels=48)[..., :40]
        resized = teacher.resize(inputs)
        assert resized.shape == (4, 3, *expected)
        assert teacher(inputs)['logits'].shape == (4, NUM_CLASSES)
        assert_close(teacher(inputs), teacher(resized), rtol=0, atol=0)
        assert len(teacher.predict(inputs, batch(4)['data_samples'])) == 4

    def test_smaller_images_are_antialiased(self):
        inputs = images(pixels=128)
        expected = F.interpolate(inputs, (32, 32), mode='bilinear', antialias=True)
        assert_close(teach(vit()).resize(inputs), expected, rtol=0, atol=0)

    def test_images_of_its_size_are_untouched(self):
        inputs = images()
        assert teach(vit()).resize(inputs) is inputs


@pytest.mark.parametrize('value', [float('nan'), float('inf'), -float('inf')])
@pytest.mark.parametrize('config', [resnet, timm_resnet])
def test_logits_that_are_not_finite(config, value):
    inputs = images()
    inputs[1, 0] = inputs[3] = value
    message = refuses(ConfigError, lambda: teach(config())(inputs))
    assert message.startswith('teacher logits: 2 of 4 samples are not finite')

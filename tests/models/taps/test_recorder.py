"""FeatureRecorder: its records, and that it leaves nothing in the model."""

from __future__ import annotations

import copy
import io
import weakref

import pytest
import torch
from helpers import NUM_CLASSES, resnet
from torch import nn
from torch.testing import assert_close
from torch.utils.checkpoint import checkpoint

from mldr_kd_mm import ConfigError, FeatureRecorder
from mldr_kd_mm.registry import MODELS

TAPS = dict(first='0', act='2', inner='3.1')


@pytest.fixture
def model():
    return nn.Sequential(
        nn.Conv2d(3, 4, 3),
        nn.BatchNorm2d(4),
        nn.ReLU(),
        nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten()),
        nn.Linear(4, 2),
    ).eval()


@pytest.fixture
def images():
    return torch.randn(2, 3, 6, 6, generator=torch.Generator().manual_seed(0))


def hooks(model: nn.Module) -> list:
    return [h for m in model.modules() for h in (*m._forward_hooks, *m._forward_pre_hooks)]


def refuses(recorder, model, images, names=None) -> str:
    """Return its one-line error; no hook may stay attached."""
    with pytest.raises(ConfigError) as caught, recorder(model, names):
        model(images)
    assert not hooks(model)
    assert '\n' not in str(caught.value)
    return str(caught.value)


class Twice(nn.Module):
    """Calls one module twice, by position and by keyword, and returns a chosen output."""

    def __init__(self, make_output=lambda first, second: second):
        super().__init__()
        self.layer = nn.Linear(3, 3)
        self.unused = nn.Linear(3, 3)
        self.out = nn.Identity()
        self.make_output = make_output

    def forward(self, x):
        first = self.layer(x)
        return self.out(self.make_output(first, self.layer(first)))


class TestRecord:
    def test_outputs(self, model, images):
        with FeatureRecorder(TAPS)(model) as record:
            output = model(images)
        assert list(record) == list(TAPS)
        assert_close(record['first'], model[0](images), rtol=0, atol=0)
        assert_close(record['act'], model[:3](images), rtol=0, atol=0)
        assert_close(model[4](record['inner']), output, rtol=0, atol=0)

    def test_it_is_the_tensor_of_the_graph(self, model, images):
        with FeatureRecorder(TAPS)(model) as record:
            output = model(images)
        (gradient,) = torch.autograd.grad(output.sum(), record['first'])
        assert gradient.any()

    def test_input(self, model, images):
        with FeatureRecorder(dict(image='0:input', whole=':input', feature='4:input'))(
            model
        ) as record:
            output = model(images)
        assert record['image'] is images
        assert record['whole'] is images
        assert_close(model[4](record['feature']), output, rtol=0, atol=0)

    def test_input_by_keyword(self):
        model, x = Twice(), torch.ones(1, 3)
        model.forward = lambda x: model.layer(input=x)
        with FeatureRecorder(dict(a='layer:input'))(model) as record:
            model(x)
        assert record['a'] is x

    def test_the_model_itself(self, model, images):
        with FeatureRecorder(dict(output=''))(model) as record:
            output = model(images)
        assert record['output'] is output

    @pytest.mark.parametrize('wrap', [tuple, list])
    def test_one_tensor_in_a_sequence(self, wrap):
        model, x = Twice(lambda *pair: wrap(pair[:1])), torch.ones(1, 3)
        with FeatureRecorder(dict(a='out'))(model) as record:
            (output,) = model(x)
        assert record['a'] is output

    def test_the_last_call_counts(self):
        model = Twice()
        with FeatureRecorder(dict(a='layer'))(model) as record:
            output = model(torch.ones(1, 3))
        assert record['a'] is output

    def test_only_what_is_asked_for(self, model, images):
        with FeatureRecorder(TAPS)(model, ['act']) as record:
            assert len(hooks(model)) == 1
            model(images)
        assert list(record) == ['act']

    def test_nothing_asked_nothing_attached(self, model, images):
        with FeatureRecorder(TAPS)(model, []) as record:
            assert not hooks(model)
            model(images)
        assert record == {}

    def test_logits_and_feature_are_known_of_a_classifier(self):
        model, x = MODELS.build(resnet()).eval(), torch.zeros(2, 3, 32, 32)
        with FeatureRecorder()(model, ['feature', 'logits']) as record:
            logits = model(x)
        assert record['logits'] is logits
        assert record['feature'].shape == (2, 64)
        assert logits.shape == (2, NUM_CLASSES)

    def test_a_configured_tap_wins(self, model, images):
        with FeatureRecorder(dict(logits='0'))(model, ['logits']) as record:
            model(images)
        assert_close(record['logits'], model[0](images), rtol=0, atol=0)

    @pytest.mark.parametrize(
        'mode', [torch.no_grad, torch.inference_mode, torch.enable_grad], ids=lambda m: m.__name__
    )
    def test_under(self, mode, model, images):
        with mode(), FeatureRecorder(TAPS)(model) as record:
            model(images)
        assert_close(record['act'], model[:3](images), rtol=0, atol=0)
        assert record['act'].requires_grad == (mode is torch.enable_grad)

    def test_names(self):
        assert FeatureRecorder(dict(a='0', feature='1')).names == ('logits', 'feature', 'a')
        stages = ('stage1', 'stage2', 'stage3', 'stage4')
        assert FeatureRecorder().names == ('logits', 'feature', *stages)


class TestNothingStays:
    def test_attached(self, model, images):
        recorder = FeatureRecorder(TAPS)
        with recorder(model):
            assert len(hooks(model)) == 3
            model(images)
        assert not hooks(model)

    def test_attached_when_the_body_raises(self, model):
        with pytest.raises(ZeroDivisionError), FeatureRecorder(TAPS)(model):
            _ = 1 / 0
        assert not hooks(model)

    def test_attached_when_the_model_raises(self, model):
        with pytest.raises(RuntimeError, match='expected input'), FeatureRecorder(TAPS)(model):
            model(torch.zeros(1, 5, 6, 6))
        assert not hooks(model)

    def test_of_the_tensors(self, model, images):
        recorder = FeatureRecorder(TAPS)
        with recorder(model) as record:
            model(images)
        tensors = [weakref.ref(tensor) for tensor in record.values()]
        assert all(tensor() is not None for tensor in tensors)
        del record
        assert all(tensor() is None for tensor in tensors)

    def test_in_the_state_or_a_file(self, model, images):
        keys = list(model.state_dict())
        with FeatureRecorder(TAPS)(model):
            model(images)
        assert list(model.state_dict()) == keys
        torch.save(model, io.BytesIO())


class TestUseAgain:
    def test_each_with_has_its_own_record(self, model, images):
        recorder = FeatureRecorder(TAPS)
        with recorder(model) as first:
            model(images)
        kept = dict(first)
        with recorder(model) as second:
            model(2 * images)
        assert all(first[name] is kept[name] for name in TAPS)
        assert_close(second['first'], model[0](2 * images), rtol=0, atol=0)

    def test_nested(self, model, images):
        recorder = FeatureRecorder(TAPS)
        with recorder(model) as outer:
            with recorder(model, ['first']) as inner:
                model(images)
            assert len(hooks(model)) == 3
        assert list(inner) == ['first']
        assert list(outer) == list(TAPS)
        assert inner['first'] is outer['first']
        assert not hooks(model)

    def test_two_models_at_once(self, model, images):
        recorder, other = FeatureRecorder(TAPS), copy.deepcopy(model)
        with recorder(model) as record, recorder(other) as other_record:
            model(images)
            other(2 * images)
        assert_close(record['first'], model[0](images), rtol=0, atol=0)
        assert_close(other_record['first'], model[0](2 * images), rtol=0, atol=0)

    def test_after_a_deepcopy(self, model, images):
        recorder = FeatureRecorder(TAPS)
        with recorder(model) as record:
            model(images)
        before = record['first'].clone()
        other, other_recorder = copy.deepcopy((model, recorder))
        nn.init.zeros_(other[0].weight)
        with other_recorder(other) as other_record:
            other(images)
        assert_close(other_record['first'], other[0](images), rtol=0, atol=0)
        assert_close(record['first'], before, rtol=0, atol=0)

    def test_after_modules_were_exchanged(self, model, images):
        recorder = FeatureRecorder(dict(norm='1'))
        with recorder(model) as before:
            model(images)
        converted = nn.SyncBatchNorm.convert_sync_batchnorm(model)
        assert isinstance(converted[1], nn.SyncBatchNorm)
        with recorder(converted) as after:
            converted(images)
        assert_close(after['norm'], before['norm'])


class TestErrors:
    @pytest.mark.parametrize(
        'taps', ['stage', '', None, 4, ['0'], dict(a=0), dict(a=None), {1: 'a'}], ids=repr
    )
    def test_taps(self, taps):
        with pytest.raises(ConfigError) as caught:
            FeatureRecorder(taps)
        assert str(caught.value).startswith(f"taps={taps!r}: must be 'stages' or a dict")

    @pytest.mark.parametrize(
        'path', ['backbone.layr1', 'backbone.layer1.5', 'layer1', 'backbone.layr1:input']
    )
    def test_a_path_that_does_not_exist(self, path):
        message = refuses(FeatureRecorder(dict(a=path)), MODELS.build(resnet()), torch.zeros(1))
        assert message.startswith(f"taps: a='{path}' is not a module of ImageClassifier; near: ")
        assert 'backbone.layer1' in message.split('near: ')[1].split(', ')

    def test_a_tap_inside_activation_checkpointing(self, model, images):
        """The forward pass runs there without gradients, and again in the backward pass."""
        inner = model[3]
        plain = inner.forward
        inner.forward = lambda x: checkpoint(plain, x, use_reentrant=True)
        images.requires_grad_()
        message = refuses(FeatureRecorder(taps=TAPS), model, images)
        assert message.startswith("taps: inner='3.1' runs without gradients, as inside a module")
        with FeatureRecorder(taps=dict(outer='3'))(model) as record:
            model(images)
        assert record['outer'].requires_grad
        with torch.no_grad(), FeatureRecorder(taps=TAPS)(model) as record:
            model(images)
        assert 'inner' in record

    def test_a_wrong_path_after_a_right_one(self, model, images):
        message = refuses(FeatureRecorder(dict(right='0', wrong='nowhere')), model, images)
        assert "wrong='nowhere'" in message

    def test_a_path_near_nothing(self, model, images):
        assert refuses(FeatureRecorder(dict(a='?')), model, images).endswith('near: 0, 1, 2, 3')

    @pytest.mark.parametrize('path', ['unused', 'unused:input'])
    def test_a_module_that_does_not_run(self, path):
        message = refuses(FeatureRecorder(dict(a=path)), Twice(), torch.ones(1, 3))
        assert message.startswith(f"taps: a='{path}' did not run in the forward pass; near: unused")

    @pytest.mark.parametrize(
        ('output', 'kind'),
        [
            (lambda *pair: pair, '2 tensors'),
            (lambda *pair: list(pair), '2 tensors'),
            (lambda *pair: dict(x=pair[0]), 'a dict'),
            (lambda *pair: ((pair[0],),), 'a tuple'),
            (lambda *pair: None, 'a NoneType'),
        ],
    )
    @pytest.mark.parametrize('path', ['out', 'out:input'])
    def test_what_is_no_tensor(self, output, kind, path):
        message = refuses(FeatureRecorder(dict(a=path)), Twice(output), torch.ones(1, 3))
        assert message.startswith(f"taps: a='{path}' gives {kind}: must be")

    @pytest.mark.parametrize(('path', 'given'), [('out:2', '2 tensors'), ('layer:1', 'one tensor')])
    def test_a_tensor_that_is_not_among_them(self, path, given):
        model = Twice(lambda *pair: pair)
        message = refuses(FeatureRecorder(dict(a=path)), model, torch.ones(1, 3))
        assert message.startswith(f"taps: a='{path}' gives {given}: must be")

    @pytest.mark.parametrize('path', ['out:output', 'out:', 'out:-1', 'out:0:input'])
    def test_what_is_no_path(self, path):
        with pytest.raises(ConfigError) as caught:
            FeatureRecorder(dict(a=path))
        assert str(caught.value).startswith(
            f"taps: a='{path}': the suffix of a module path must be :input"
        )

    @pytest.mark.parametrize('names', [['act', 'other'], ['stage1']])
    def test_a_name_that_nobody_records(self, names, model, images):
        message = refuses(FeatureRecorder(TAPS), model, images, names)
        assert message == (
            f'unknown tensor {names[-1]!r}; available: logits, feature, first, act, inner'
        )

    @pytest.mark.parametrize('mode', [torch.no_grad, torch.enable_grad], ids=lambda m: m.__name__)
    @pytest.mark.parametrize('path', ['1', '2:input'])
    def test_a_change_in_place(self, path, mode, model, images):
        """The in-place ReLU overwrites the output of the norm."""
        model[2].inplace = True
        recorder = FeatureRecorder(dict(norm=path, act='2'))
        with pytest.raises(RuntimeError) as caught, mode(), recorder(model):
            model(images)
        assert str(caught.value).startswith(f"taps: norm='{path}' was changed in place")
        assert '\n' not in str(caught.value)
        assert not hooks(model)

    def test_what_an_in_place_module_gives_is_fine(self, model, images):
        expected = model[:3](images)
        model[2].inplace = True
        with FeatureRecorder(dict(act='2'))(model) as record:
            model(images)
        assert_close(record['act'], expected, rtol=0, atol=0)

    def test_an_error_of_the_body_is_not_hidden(self, model):
        """The error of the body is raised, not that of a path that did not run."""
        with pytest.raises(ZeroDivisionError), FeatureRecorder(TAPS)(model):
            _ = 1 / 0

"""Modules of other libraries: what they return, what may be imported, and their stages."""

import json
import re
import sys
from collections import namedtuple
from pathlib import Path
from types import SimpleNamespace
from unittest.mock import Mock

import numpy as np
import pytest
import torch
import torchvision
from helpers import NORMALIZATION, mldr, resnet, runner_config
from mmengine.config import Config
from mmengine.registry import DefaultScope, init_default_scope
from mmengine.runner import Runner
from PIL import Image
from torch import nn
from torch.testing import assert_close

from mldr_kd_mm import ConfigError, predict
from mldr_kd_mm.apis.export import export_student
from mldr_kd_mm.apis.models import fetch_pretrained, find_model, with_pretrained_weights
from mldr_kd_mm.models.backbones import hugging_face
from mldr_kd_mm.models.builder import build_classifier
from mldr_kd_mm.models.data_preprocessor import ViewDataPreprocessor, own_statistics
from mldr_kd_mm.models.taps.recorder import FeatureRecorder
from mldr_kd_mm.models.taps.tapped_model import TappedModel
from mldr_kd_mm.models.weights import load_weights
from mldr_kd_mm.registry import MODELS
from mldr_kd_mm.utils import stored_config
from mldr_kd_mm.utils.stored_config import check_types, import_modules

Output = namedtuple('Output', 'loss logits')
CLASS_TOKEN = 'vit.embeddings.cls_token'


class Net(nn.Module):
    """Stages inside of a part that is no list, as in transformers."""

    def __init__(self, form=lambda logits: logits, num_classes=3, width=4):
        super().__init__()
        self.embeddings = nn.Conv2d(3, width, 4, 4)
        self.encoder = nn.Module()
        self.encoder.layers = nn.ModuleList(nn.Conv2d(width, width, 3, 2, 1) for _ in range(4))
        self.classifier = nn.Linear(width, num_classes)
        self.form = form

    def forward(self, images):
        features = self.embeddings(images)
        for layer in self.encoder.layers:
            features = layer(features).relu()
        return self.form(self.classifier(features.mean((2, 3))))


def fails(**kwargs):
    raise RuntimeError('no weights here')


NOT_CALLABLE = 3


def build(module=f'{__name__}:Net', **kwargs):
    return MODELS.build(dict(type='ModuleClassifier', module=module, kwargs=kwargs))


@pytest.mark.parametrize(
    'form',
    [
        lambda logits: (logits, 'more'),
        lambda logits: Output(None, logits),
        lambda logits: dict(loss=None, logits=logits),
    ],
    ids=['tuple', 'object', 'dict'],
)
def test_output(form):
    torch.manual_seed(0)
    plain = build()
    other = build(form=form)
    other.load_state_dict(plain.state_dict())
    images = torch.rand(2, 3, 64, 64)
    assert torch.equal(other(images), plain(images))
    assert {*plain.state_dict()} == {*Net().state_dict()}


@pytest.mark.parametrize(
    ('form', 'found'),
    [
        (lambda logits: logits.mean(1), r'(2,)'),
        (lambda logits: dict(scores=logits), 'dict'),
        (lambda logits: 'cat', 'str'),
        (lambda logits: (), 'tuple'),
    ],
)
def test_output_without_logits(form, found):
    with pytest.raises(ConfigError, match=f'^Net: must return logits.* not {re.escape(found)}'):
        build(form=form)(torch.rand(2, 3, 64, 64))


@pytest.mark.parametrize(
    ('module', 'message'),
    [
        ('torchvision.models.resnet18', 'must be PACKAGE.MODULE:FUNCTION'),
        ('no_such_package.nets:Net', 'no_such_package.nets cannot be imported: No module named'),
        (f'{__name__}:Nett', f'{__name__} has no Nett; did you mean Net'),
        (f'{__name__}:NOT_CALLABLE', 'must be a function or a class, not int'),
        ('builtins:dict', 'must return an nn.Module, not dict'),
        (f'{__name__}:fails', 'no weights here'),
        (f'{__name__}:json.dumps', 'json is a module; must be json:FUNCTION'),
        (f'{__name__}:nn.init.os.getcwd', 'nn is a module; must be torch.nn:FUNCTION'),
    ],
)
def test_mistakes(module, message):
    with pytest.raises(ConfigError, match=message) as caught:
        build(module)
    assert '\n' not in str(caught.value)


@pytest.mark.parametrize('scope', [None, 'mmpretrain', 'mldr_kd_mm'])
@pytest.mark.parametrize('name', ['torchvision/resnet18', 'vim-tiny'])
def test_default_scope(name, scope):
    """``distill`` looks at its models before there is a default scope."""
    DefaultScope._instance_dict.clear()
    if scope is not None:
        init_default_scope(scope)
    model = build_classifier(find_model(name, 3).config)
    assert isinstance(model.data_preprocessor, ViewDataPreprocessor)


def test_stages_inside_of_a_part():
    tapped = TappedModel(build(), FeatureRecorder())
    tapped.find_stages((3, 64, 64))
    paths = [tapped.recorder.taps[f'stage{number}'] for number in range(1, 5)]
    assert paths == [f'model.encoder.layers.{number}' for number in range(4)]


class TestStoredConfig:
    @pytest.mark.parametrize(
        ('module', 'trust'),
        [
            ('subprocess:check_call', 'subprocess'),
            ('os:system', 'os'),
            ('torchvision.models.utils:load_state_dict_from_url', 'torchvision.models.utils'),
            ('torchvision.models:_utils.sys.exit', 'torchvision.models'),
            ('torchvision.models:get_model_builder', 'torchvision.models'),
            ('mldr_kd_mm.models.backbones.hugging_face:create', 'transformers'),
            (['os'], "['os']"),
        ],
    )
    def test_names_other_code(self, module, trust):
        config = dict(student=dict(type='mldr_kd_mm.ModuleClassifier', module=module))
        match = r'^model\.student\.module=.*; if you trust'
        with pytest.raises(ConfigError, match=match) as caught:
            check_types(config, 'model')
        assert str(caught.value).endswith(f'add --imports {trust}')

    def test_names_torchvision_or_what_the_user_imports(self, monkeypatch):
        monkeypatch.setattr(stored_config, '_trusted', set())
        config = dict(type='ModuleClassifier', module='torchvision.models:resnet18')
        assert check_types(config, 'model') == config
        config = dict(type='ModuleClassifier', module=f'{__name__}:Net')
        with pytest.raises(ConfigError):
            check_types(config, 'model')
        import_modules([__name__])
        assert check_types(config, 'model') == config


class TestTorchvision:
    def test_loads_weights_for_other_classes(self, tmp_path):
        found = find_model('torchvision/mobilenet_v3_small', 37, 64)
        assert found.image_size == 64 and found.normalization['mean'][0] == 123.675
        theirs = torchvision.models.mobilenet_v3_small(num_classes=5)
        torch.save(theirs.state_dict(), tmp_path / 'weights.pth')
        model = MODELS.build(found.config)
        model.init_weights()
        report = load_weights(model, str(tmp_path / 'weights.pth'), 'load_from', for_training=True)
        assert report.missing == ['classifier.3.weight', 'classifier.3.bias']
        assert torch.equal(model.model.features[0][0].weight, theirs.features[0][0].weight)

    def test_pretrained_weights(self):
        found = find_model('torchvision/vit_b_32', 2, 64)
        assert found.config['kwargs'] == dict(num_classes=2, image_size=64)
        assert with_pretrained_weights(found, 'student')['init_cfg']['checkpoint'] == found.weights
        assert found.weights.startswith('https://') and found.pretrained_classes == 1000

    def test_older_names_of_densenet(self, tmp_path):
        kwargs = dict(growth_rate=4, block_config=[1, 1, 1, 2], num_init_features=8)
        theirs = torchvision.models.DenseNet(**kwargs, num_classes=5)
        pattern = re.compile(r'(denselayer\d+\.(norm|conv))([12])')
        old = {pattern.sub(r'\1.\3', name): w for name, w in theirs.state_dict().items()}
        assert 'features.denseblock4.denselayer2.norm.1.weight' in old
        torch.save(old, tmp_path / 'weights.pth')
        model = build('torchvision.models:DenseNet', **kwargs, num_classes=3)
        report = load_weights(model, str(tmp_path / 'weights.pth'), 'load_from', for_training=True)
        assert report.missing == ['classifier.weight', 'classifier.bias']
        ours, theirs = (m.features.denseblock4.denselayer2 for m in (model.model, theirs))
        assert torch.equal(ours.conv1.weight, theirs.conv1.weight)

    @pytest.mark.parametrize('name', ['googlenet', 'inception_v3'])
    def test_weights_for_images_of_another_range(self, name):
        """As torchvision sets it together with the weights."""
        assert find_model(f'torchvision/{name}', 2).config['kwargs']['transform_input']

    def test_unknown_name(self):
        match = "student='torchvision/resnet19': .*did you mean resnet"
        with pytest.raises(ConfigError, match=match):
            find_model('torchvision/resnet19', 2, field='student')
        with pytest.raises(ConfigError, match="'torchvision/mnasnet1_0': there is no such model"):
            find_model('torchvision/mnasnet1_0', 2)


@pytest.fixture(scope='module')
def folder(tmp_path_factory):
    """Write a small ViT with random weights, as transformers saves it."""
    transformers = pytest.importorskip('transformers', reason='needs transformers')
    config = transformers.ViTConfig(
        hidden_size=16,
        num_hidden_layers=4,
        num_attention_heads=2,
        intermediate_size=16,
        image_size=32,
        patch_size=8,
        num_labels=5,
    )
    path = tmp_path_factory.mktemp('hugging_face') / 'vit'
    transformers.ViTForImageClassification(config).save_pretrained(path)
    statistics = dict(image_mean=[0.5] * 3, image_std=[0.25] * 3)
    processor = dict(image_processor_type='ViTImageProcessor', **statistics)
    (path / 'preprocessor_config.json').write_text(json.dumps(processor))
    return path


class TestHuggingFace:
    def test_model(self, folder, tmp_path):
        found = find_model(f'hf/{folder}', 3)
        assert found.image_size == 32 and found.normalization['mean'] == [127.5] * 3
        tapped = TappedModel(MODELS.build(found.config), FeatureRecorder())
        stages = tapped.find_stages((3, 32, 32))
        probe = tapped.probe(['feature', *stages], (3, 32, 32))
        assert probe.width('logits') == 3 and probe.width('feature') == 16
        assert [probe.layouts[stage].grid for stage in stages] == [(4, 4)] * 4

    @pytest.fixture
    def stub(self, monkeypatch):
        """Replace transformers, which may not be installed."""
        stub = SimpleNamespace(
            AutoConfig=Mock(), AutoImageProcessor=Mock(), AutoModelForImageClassification=Mock()
        )
        monkeypatch.setitem(sys.modules, 'transformers', stub)
        return stub

    @pytest.mark.parametrize(
        ('processor', 'mean', 'std'),
        [
            (dict(do_normalize=True, image_mean=[0.5] * 3, image_std=[0.2] * 3), 127.5, 51.0),
            (dict(do_normalize=None, image_mean=None, image_std=None), 0.0, 255.0),  # MobileViT
            (dict(data_config=dict(mean=(0.5,) * 3, std=(0.2,) * 3)), 127.5, 51.0),  # timm's
            (dict(do_normalize=True), 123.675, 58.395),
        ],
    )
    def test_normalization(self, stub, processor, mean, std):
        stub.AutoConfig.from_pretrained.return_value = SimpleNamespace(num_labels=5)
        stub.AutoImageProcessor.from_pretrained.return_value = SimpleNamespace(**processor)
        found = find_model('hf/some/model', 3).normalization
        assert (found['mean'][0], found['std'][0]) == (mean, std)
        assert 'to_rgb' not in found

    def test_channel_order(self, stub):
        """MobileViT reads BGR."""
        stub.AutoConfig.from_pretrained.return_value = SimpleNamespace(num_labels=5)
        processor = SimpleNamespace(do_normalize=None, do_flip_channel_order=True)
        stub.AutoImageProcessor.from_pretrained.return_value = processor
        assert find_model('hf/some/model', 3).normalization['to_rgb'] is False
        loaded = dict(type='HuggingFaceClassifier', model_name='some/model', pretrained=True)
        assert own_statistics(loaded).is_bgr

    @pytest.mark.parametrize('pretrained', [True, False])
    def test_a_repository_in_half_precision(self, stub, pretrained):
        models = stub.AutoModelForImageClassification
        models.from_pretrained.return_value = nn.Linear(2, 2).bfloat16()
        models.from_config.return_value = nn.Linear(2, 2).half()
        assert hugging_face.create('some/model', 2, pretrained).weight.dtype == torch.float32

    def test_pretrained_weights(self, folder, tmp_path):
        found = find_model(f'hf/{folder}', 3)
        model = MODELS.build(with_pretrained_weights(found, 'teacher'))
        model.init_weights()
        path = fetch_pretrained(found, tmp_path / 'pretrained.pth', 'teacher')
        weights = torch.load(path)
        assert torch.equal(model.state_dict()[CLASS_TOKEN], weights[CLASS_TOKEN])
        assert len(weights['classifier.weight']) == 3

    @pytest.mark.parametrize('num_classes', [5, 3])
    def test_a_file_of_transformers(self, folder, num_classes):
        """Its names are older than those of the modules."""
        file = str(folder / 'model.safetensors')
        model = MODELS.build(find_model(f'hf/{folder}', num_classes).config)
        report = load_weights(model, file, 'load_from', for_training=True)
        assert 'converted by transformers' in report.notes
        assert len(report.missing) == (0 if num_classes == 5 else 2)
        theirs = hugging_face.create(str(folder), 5, pretrained=True).state_dict()
        loaded = {name: w for name, w in model.state_dict().items() if name not in report.missing}
        assert all(torch.equal(weight, theirs[name]) for name, weight in loaded.items())

    def test_a_file_that_lacks_a_weight(self, folder, tmp_path):
        weights = hugging_face.create(str(folder), 5).state_dict()
        del weights['vit.layers.1.attention.q_proj.bias']
        torch.save(weights, tmp_path / 'weights.pth')
        model = MODELS.build(find_model(f'hf/{folder}', 5).config)
        with pytest.raises(ConfigError, match='missing .*vit.layers.1.attention.q_proj.bias'):
            load_weights(model, str(tmp_path / 'weights.pth'), 'teacher_checkpoint')


class TestHuggingFaceClassifier:
    """mmpretrain's own wrapper, as teacher and as student."""

    @staticmethod
    def config(folder, pretrained=False):
        config = dict(type='HuggingFaceClassifier', model_name=str(folder), num_labels=5)
        return dict(config, pretrained=pretrained)

    def test_example_of_the_documentation(self, folder):
        page = (Path(__file__).parents[3] / 'docs/any_model.md').read_text()
        (text,) = re.findall('```python\n(.*HuggingFaceClassifier.*)```', page, re.DOTALL)
        text = text.rpartition('```python\n')[2]
        names: dict = {}
        exec(text.replace('google/vit-base-patch16-224', str(folder)), names)
        model = MODELS.build(names['model']['teacher'])
        assert len(model.model.classifier.weight) == 37
        assert torch.equal(model.model.vit.embeddings.cls_token, self.theirs(folder)[CLASS_TOKEN])

    def model(self, folder, **kwargs):
        models = dict(teacher=self.config(folder, True), student=self.config(folder))
        return mldr(**models, **kwargs)

    def test_loads_all_weights_into_the_student(self, folder):
        """As a resumed run does."""
        model, other = (MODELS.build(self.model(folder)) for _ in range(2))
        weights = model.state_dict()
        assert {f'student.model.{name}' for name in self.theirs(folder)} <= set(weights)
        other.load_state_dict(weights)
        assert all(torch.equal(value, weights[name]) for name, value in other.state_dict().items())

    @staticmethod
    def theirs(folder):
        return hugging_face.create(str(folder), 5, pretrained=True).state_dict()

    def test_pretrained_weights_and_their_statistics(self, folder):
        model = mldr(self.config(folder, True), self.config(folder, True))
        model = MODELS.build(model)
        model.init_weights()
        ((_, teacher, _),) = model.teachers
        for each in (teacher.model, model.student):
            own, theirs = each.state_dict(), self.theirs(folder)
            assert own.keys() == theirs.keys()
            assert all(torch.equal(own[name], theirs[name]) for name in own)
        assert teacher.model.data_preprocessor.mean.flatten().tolist() == [127.5] * 3
        assert teacher.model.data_preprocessor.std.flatten().tolist() == [63.75] * 3

    @pytest.mark.parametrize('names', ['file', 'module'])
    def test_teacher_checkpoint(self, folder, tmp_path, names):
        file = folder / 'model.safetensors'
        if names == 'module':
            file = tmp_path / 'weights.pth'
            torch.save(self.theirs(folder), file)
        model = mldr(self.config(folder), resnet(5), teacher_checkpoint=str(file))
        ((_, teacher, _),) = MODELS.build(model).teachers
        for name, weight in teacher.model.state_dict().items():
            assert torch.equal(weight, self.theirs(folder)[name])

    @pytest.fixture(scope='class')
    def run(self, folder, tmp_path_factory):
        path = tmp_path_factory.mktemp('run')
        preprocessor = dict(NORMALIZATION, num_classes=5)
        model = self.model(folder, data_preprocessor=preprocessor)
        config = Config(runner_config(model, path))
        for loader in (config.train_dataloader, config.val_dataloader):
            loader.dataset.subset = dict(per_class=2, labels=list(range(5)))
        Runner.from_cfg(config).train()
        return path / 'epoch_1.pth'

    def test_export(self, run, folder, tmp_path):
        for out in ('student', 'student.onnx', 'backbone.pth'):
            export_student(str(run), str(tmp_path / out), backbone=out == 'backbone.pth')
        weights = torch.load(tmp_path / 'student/model.pth')['state_dict']
        assert weights.keys() == self.theirs(folder).keys()
        model = hugging_face.create(str(folder), 5)
        model.load_state_dict(weights)
        backbone = torch.load(tmp_path / 'backbone.pth')['state_dict']
        assert weights.keys() - backbone.keys() == {'classifier.weight', 'classifier.bias'}

        Image.fromarray(torch.randint(0, 256, (32, 32, 3)).byte().numpy()).save(tmp_path / '1.png')
        image = torch.from_numpy(np.array(Image.open(tmp_path / '1.png'))).permute(2, 0, 1)
        with torch.no_grad():
            wanted = model.eval()((image[None] - 127.0) / 64.0).logits.softmax(1)
        for name in ('student', 'student.onnx'):
            (found,) = predict(str(tmp_path / name), str(tmp_path / '1.png'), top_k=5)
            probabilities = dict(zip(found.classes, found.probabilities, strict=True))
            assert_close(
                [probabilities[str(i)] for i in range(5)], wanted[0].tolist(), atol=1e-5, rtol=0
            )

"""Every file that enters a model is counted: heads of other classes, init_cfg, torchvision."""

from __future__ import annotations

import pytest
import torch
import torchvision
from helpers import NUM_CLASSES, mldr, resnet, timm_resnet, vit
from mmengine.registry import WEIGHT_INITIALIZERS
from mmengine.runner import CheckpointLoader
from safetensors.torch import save_file
from torch.testing import assert_close

from mldr_kd_mm import ConfigError
from mldr_kd_mm.models.backbones.modules import describe_module
from mldr_kd_mm.models.builder import build_classifier
from mldr_kd_mm.models.distillers.weights import load_into
from mldr_kd_mm.models.weights import load_content, load_weights, use_counted_loading
from mldr_kd_mm.registry import MODELS

CONFIGS = dict(mmpretrain=resnet, vit=vit, timm=timm_resnet)
HEADS = dict(mmpretrain='head.fc', vit='head.layers.head', timm='fc')


def weights_of(config, seed=1) -> dict[str, torch.Tensor]:
    torch.manual_seed(seed)
    weights = MODELS.build(config).state_dict()
    return {
        name: torch.randn_like(value) if value.is_floating_point() else value
        for name, value in weights.items()
    }


def save(path, content) -> str:
    torch.save(content, path)
    return str(path)


def refuses(call) -> str:
    with pytest.raises(ConfigError) as caught:
        call()
    assert '\n' not in str(caught.value)
    return str(caught.value)


@pytest.mark.parametrize('kind', CONFIGS)
class TestHead:
    """A model that is trained may have other classes than the file; nothing else may differ."""

    @pytest.mark.parametrize('classes', [2, 37])
    def test_of_other_classes_starts_anew(self, kind, classes):
        content, model = weights_of(CONFIGS[kind](classes)), MODELS.build(CONFIGS[kind]())
        before = {name: value.clone() for name, value in model.state_dict().items()}
        report = load_content(model, {'model': content}, 'f', for_training=True)
        head = {f'{HEADS[kind]}.weight', f'{HEADS[kind]}.bias'}
        assert set(report.missing) == head
        assert report.matched == len(content) - 2
        for name, value in model.state_dict().items():
            assert_close(value, before[name] if name in head else content[name], rtol=0, atol=0)
        assert f'{classes} classes in the file, {NUM_CLASSES} in the model' in str(report)
        assert f"from 'model', the head {HEADS[kind]} starts anew: " in str(report)

    def test_that_the_file_lacks_starts_anew(self, kind):
        content = weights_of(CONFIGS[kind]())
        content = {k: v for k, v in content.items() if not k.startswith(HEADS[kind])}
        model = MODELS.build(CONFIGS[kind]())
        assert 'not in the file' in str(load_content(model, content, 'f', for_training=True))
        assert 'missing ' + HEADS[kind] in refuses(lambda: load_content(model, content, 'f'))
        # It may have another name in the file.
        content['classifier.weight'] = torch.ones(3)
        said = refuses(lambda: load_content(model, content, 'f', for_training=True))
        assert HEADS[kind] in said and 'unexpected classifier.weight; ' in said
        assert 'allow_missing=[...]' in said

    def test_nothing_else_may_differ(self, kind):
        content = weights_of(CONFIGS[kind](7))
        lost = next(iter(content))
        del content[lost]
        model = MODELS.build(CONFIGS[kind]())
        assert lost in refuses(lambda: load_content(model, content, 'f', for_training=True))


def test_a_model_without_a_head():
    weights, model = weights_of(resnet()), MODELS.build(dict(resnet(), head=None))
    report = load_content(model, weights, 'f', for_training=True)
    assert report.missing == [] and set(report.unexpected) == {'head.fc.weight', 'head.fc.bias'}
    del weights['backbone.conv1.weight']
    said = refuses(lambda: load_content(model, weights, 'f', for_training=True))
    assert 'missing backbone.conv1.weight' in said


class TestInitCfg:
    @pytest.fixture(autouse=True)
    def counted(self, monkeypatch):
        monkeypatch.setattr(CheckpointLoader, '_schemes', dict(CheckpointLoader._schemes))
        before = WEIGHT_INITIALIZERS.get('Pretrained')
        use_counted_loading()
        yield
        WEIGHT_INITIALIZERS.register_module('Pretrained', force=True, module=before)

    def initialised(self, part, path, **kwargs):
        init_cfg = dict(type='Pretrained', checkpoint=path, **kwargs)
        config = resnet()
        (config if part == 'model' else config[part])['init_cfg'] = init_cfg
        model = MODELS.build(config)
        model.init_weights()
        return model.state_dict()

    @pytest.mark.parametrize('key', ['state_dict', 'model', 'net', None])
    def test_any_format(self, key, tmp_path):
        weights = weights_of(resnet())
        path = save(tmp_path / 'a.pth', {key: weights} if key else weights)
        assert_close(dict(self.initialised('model', path)), weights, rtol=0, atol=0)

    @pytest.mark.parametrize('prefix', [None, 'backbone', 'backbone.'])
    def test_of_a_backbone(self, prefix, tmp_path):
        weights = weights_of(resnet(3))
        path = save(tmp_path / 'a.pth', {'module': weights})
        found = self.initialised('backbone', path, prefix=prefix)
        for name, value in weights.items():
            if name.startswith('backbone.'):
                assert torch.equal(found[name], value)

    @pytest.mark.parametrize('student', [resnet, timm_resnet])
    def test_of_a_distillation_run(self, student, tmp_path):
        path = save(tmp_path / 'a.pth', {'state_dict': MODELS.build(mldr()).state_dict()})
        found = self.initialised('backbone', path, prefix='student.backbone')
        assert found['backbone.conv1.weight'].abs().sum() > 0

    def test_what_does_not_arrive(self, tmp_path):
        path = save(tmp_path / 'a.pth', {'state_dict': weights_of(vit())})
        said = refuses(lambda: self.initialised('backbone', path, prefix='encoder'))
        assert said == (
            f"checkpoint={path!r}: prefix='encoder.': no weight begins with it; names begin with "
            'backbone, head'
        )
        said = refuses(lambda: self.initialised('backbone', path, prefix='backbone'))
        assert said.startswith(f'checkpoint={path!r}: 0 weights matched, ')

    def test_declared(self, tmp_path):
        weights = weights_of(resnet())
        for name in [name for name in weights if 'layer4.1' in name]:
            del weights[name]
        path = save(tmp_path / 'a.pth', weights)
        assert 'layer4.1' in refuses(lambda: self.initialised('model', path))
        found = self.initialised('model', path, allow_missing=['backbone.layer4.1.*'])
        assert torch.equal(found['head.fc.weight'], weights['head.fc.weight'])

    def test_of_a_teacher(self, tmp_path):
        """A teacher has to have its head."""
        path = save(tmp_path / 'a.pth', weights_of(vit(7)))
        teacher = vit(init_cfg=dict(type='Pretrained', checkpoint=path))
        said = refuses(MODELS.build(mldr(teacher=teacher)).init_weights)
        assert f'its head has 7 classes, the model {NUM_CLASSES}' in said


class TestOfADistiller:
    @pytest.fixture(scope='class')
    def distiller(self):
        return MODELS.build(mldr())

    @pytest.fixture(scope='class')
    def trained(self):
        torch.manual_seed(5)
        return MODELS.build(mldr()).state_dict()

    def test_a_runs_checkpoint(self, distiller, trained):
        report = load_into(distiller, {'state_dict': trained}, 'f')
        assert_close(dict(distiller.state_dict()), dict(trained), rtol=0, atol=0)
        assert (report.matched, report.new) == (len(trained), ())

    @pytest.mark.parametrize('key', ['state_dict', 'model', None])
    def test_an_exported_student(self, distiller, key):
        weights = weights_of(resnet())
        report = load_into(distiller, {key: weights} if key else weights, 'f')
        assert_close(dict(distiller.student.state_dict()), weights, rtol=0, atol=0)
        assert str(report).endswith(', not in the file: neck')

    def test_of_another_method(self, distiller, trained):
        content = {name: v for name, v in trained.items() if not name.startswith('neck')}
        content['losses.0.losses.0.weight'] = torch.ones(2)
        report = load_into(distiller, {'state_dict': content}, 'f', for_training=True)
        assert report.new == ('neck',)
        assert report.unexpected == ['losses.0.losses.0.weight']

    def test_of_other_classes(self, distiller):
        content = MODELS.build(mldr(teacher=vit(7), student=resnet(7))).state_dict()
        said = refuses(lambda: load_into(distiller, {'state_dict': content}, 'f'))
        assert 'its head has 7 classes' in said
        report = load_into(distiller, {'state_dict': content}, 'f', for_training=True)
        assert report.missing == ['head.fc.weight', 'head.fc.bias'] and report.new == ('neck',)

    @pytest.mark.parametrize('classes', [NUM_CLASSES, 7])
    def test_the_teachers(self, distiller, classes):
        said = refuses(lambda: load_into(distiller, weights_of(vit(classes)), 'file'))
        assert said.startswith("file: has the teacher's weights, must have the student's; ")


def test_checkpoint_path_is_counted(tmp_path):
    weights = weights_of(timm_resnet())
    del weights['fc.bias']
    path = save(tmp_path / 'a.pth', weights)
    said = refuses(lambda: build_classifier(timm_resnet(checkpoint_path=path)))
    assert said.startswith(f'checkpoint_path={path!r}: ') and 'missing fc.bias' in said


@pytest.mark.parametrize('name', ['model.safetensors', 'pytorch_model.bin', 'model.pth'])
def test_a_folder_of_an_export(name, tmp_path):
    weights = weights_of(resnet())
    if name.endswith('safetensors'):
        save_file({k: v.contiguous() for k, v in weights.items()}, tmp_path / name)
    else:
        save(tmp_path / name, weights)
    model = MODELS.build(resnet())
    load_weights(model, str(tmp_path), 'checkpoint')
    assert_close(dict(model.state_dict()), weights, rtol=0, atol=0)


@pytest.mark.parametrize(
    'names',
    [
        ['features.0.0.weight', 'features.1.block.0.0.weight', 'features.2.conv.0.0.weight'],
        ['class_token', *(f'encoder.layers.encoder_layer_{i}.ln_1.weight' for i in range(3))],
        ['stem.0.weight', *(f'trunk_output.block1.block1-{i}.f.a.0.weight' for i in range(3))],
        ['features.0.0.weight', 'features.1.0.attn.relative_position_bias_table', 'head.weight'],
    ],
    ids=['mobilenet', 'vit', 'regnet', 'swin'],
)
@pytest.mark.parametrize('config', [resnet, timm_resnet])
def test_torchvisions_names(names, config):
    weights = {name: torch.ones(3) for name in names}
    said = refuses(lambda: load_content(MODELS.build(config()), weights, 'f'))
    assert said.startswith("f: these are torchvision's names: ")


@pytest.mark.parametrize('name', ['mobilenet_v3_small', 'vit_b_16', 'swin_t', 'convnext_tiny'])
def test_torchvisions_own_models(name):
    """They load torchvision's files, and other models say what these are."""
    with torch.device('meta'):
        theirs = getattr(torchvision.models, name)(num_classes=10)
        built = MODELS.build(describe_module(theirs))
    report = load_content(built, theirs.state_dict(), 'f')
    assert report.matched == len(theirs.state_dict())
    said = refuses(lambda: load_content(MODELS.build(timm_resnet()), theirs.state_dict(), 'f'))
    assert said.startswith("f: these are torchvision's names: ")

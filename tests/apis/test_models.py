import logging

import pytest
import timm
import torch
from helpers import resnet

from mldr_kd_mm.apis.models import (
    fetch_pretrained,
    find_model,
    recipe_of,
    with_pretrained_weights,
)
from mldr_kd_mm.models.builder import build_classifier
from mldr_kd_mm.models.taps.recorder import FeatureRecorder
from mldr_kd_mm.models.taps.tapped_model import TappedModel
from mldr_kd_mm.models.weights import load_weights
from mldr_kd_mm.utils.errors import ConfigError


@pytest.mark.parametrize(
    ('name', 'size', 'recipe', 'weights'),
    [
        ('timm/test_vit', 160, 'transformer', 'timm'),
        ('test_resnet', 160, 'cnn', 'timm'),
        ('test_resnet.r160_in1k', 160, 'cnn', 'timm'),
        ('mobilenetv2_100', 224, 'cnn', 'timm'),
        ('test_convnext', 160, 'transformer', 'timm'),
        ('levit_128s', 224, 'transformer', 'timm'),
        ('swin-tiny', 224, 'transformer', 'timm'),
        ('vim-tiny', 224, 'mamba', None),
        ('mobilenet-v2_32px', 32, 'cnn', None),
        ('deit-small', 224, 'transformer', None),
        ('mmpretrain/resnet18_8xb32_in1k', 224, 'cnn', 'https://'),
    ],
)
def test_names(name, size, recipe, weights):
    model = find_model(name, num_classes=7)

    assert model.image_size == size or name == 'mobilenet-v2_32px'
    assert recipe_of(model) == recipe
    assert weights is None or model.weights.startswith(weights)
    built = build_classifier(model.config).eval()
    with torch.no_grad():
        assert built(torch.zeros(1, 3, size, size), mode='tensor').shape == (1, 7)


@pytest.mark.parametrize('name', ['test_vit', 'test_resnet', 'deit-small', 'swin-tiny', 'vim-tiny'])
def test_another_image_size(name):
    model = find_model(name, num_classes=7, image_size=64)
    assert model.image_size == 64
    with torch.no_grad():
        built = build_classifier(model.config).eval()
        assert built(torch.zeros(1, 3, 64, 64), mode='tensor').shape == (1, 7)


def test_normalization_is_the_models_own():
    assert find_model('test_vit', 7).normalization['mean'] == [127.5] * 3
    assert find_model('mobilenetv2_100', 7).normalization['mean'] == [123.675, 116.28, 103.53]


def test_normalization_of_what_is_not_a_name(tmp_path):
    """A dict, a config and a module are trained as their weights were."""
    pretrained = dict(type='TimmClassifier', model_name='test_vit', pretrained=True)
    (tmp_path / 'mine.py').write_text(f'model = {pretrained!r}')
    module = timm.create_model('test_vit', num_classes=7)
    for model in (pretrained, str(tmp_path / 'mine.py'), module):
        found = find_model(model, 7).normalization
        assert found == dict(mean=[127.5] * 3, std=[127.5] * 3)
    for model in (dict(pretrained, pretrained=False), torch.nn.Identity()):
        assert find_model(model, 7).normalization['mean'] == [123.675, 116.28, 103.53]


def test_a_dict_and_a_config_are_taken_as_they_are(tmp_path):
    assert find_model(resnet(5), 7).config == resnet(5)
    path = tmp_path / 'mine.py'
    path.write_text(f'model = {resnet(5)!r}')
    found = find_model(str(path), 7)
    assert (found.name, found.config) == ('mine', resnet(5))


@pytest.mark.parametrize(
    ('name', 'message'),
    [
        ('mobilenetv2_10', "student='mobilenetv2_10': neither .* did you mean mobilenetv2_1"),
        ('timm/vim-tiny', 'neither timm nor mmpretrain'),
        ('test_vit.nowhere', "student='test_vit.nowhere': .*nowhere"),
        ('lost.py', "student='lost.py': there is no such file"),
    ],
)
def test_mistakes(name, message):
    with pytest.raises(ConfigError, match=message):
        find_model(name, 7, field='student')


def test_pretrained_weights():
    config = with_pretrained_weights(find_model('test_vit', 7), 'student')
    assert config['pretrained']
    model = find_model('mmpretrain/resnet18_8xb32_in1k', 7)
    config = with_pretrained_weights(model, 'student')
    assert config['init_cfg']['checkpoint'] == model.weights
    assert model.pretrained_classes == 1000


def test_no_pretrained_weights(tmp_path):
    with pytest.raises(ConfigError, match=r"teacher='vim-tiny': it has no .*teacher_checkpoint"):
        fetch_pretrained(find_model('vim-tiny', 7), tmp_path / 'weights.pth', 'teacher')


def test_a_hub_out_of_reach(tmp_path, monkeypatch, caplog):
    """Its own warnings, one for each attempt, are not shown."""
    hub = logging.getLogger('huggingface_hub.utils._http')

    def fail(*_, **__):
        hub.warning('Retrying')
        raise OSError('No route to the hub. Please try again.\nMore')

    monkeypatch.setattr(timm, 'create_model', fail)
    message = r"^teacher='test_vit': .* downloaded \(No route to the hub\); give teacher_checkpoint"
    with pytest.raises(ConfigError, match=message):
        fetch_pretrained(find_model('test_vit', 7), tmp_path / 'weights.pth', 'teacher')
    assert 'Retrying' not in caplog.text
    hub.warning('later')
    assert 'later' in caplog.text


def test_finding_a_model_draws_no_random_numbers():
    torch.manual_seed(0)
    wanted = torch.rand(1)
    torch.manual_seed(0)
    recipe_of(find_model('test_resnet', 7))
    assert torch.rand(1) == wanted


def test_a_list_of_models_is_refused_in_one_line():
    with pytest.raises(ConfigError) as caught:
        find_model(['resnet18', 'resnet34'], 3, field='teacher')
    assert str(caught.value).startswith("teacher=['resnet18', 'resnet34']: must be a name, ")
    assert str(caught.value).endswith('several teachers need a config')


# Image towers of foundation models: name -> size of the images, not the one of the weights.
TOWERS = {
    'vit_small_patch14_dinov2': 56,
    'vit_small_patch14_reg4_dinov2': 56,
    'vit_small_patch16_dinov3': 64,
    'vit_base_patch16_siglip_224': 64,
    'vit_base_patch16_clip_224': 64,
    'resnet50_clip': 64,
}


@pytest.mark.parametrize(
    ('name', 'size'),
    [('test_vit', 96), *(pytest.param(*tower, marks=pytest.mark.slow) for tower in TOWERS.items())],
)
def test_a_tower_at_another_image_size(name, size, tmp_path):
    """Its feature is timm's before the head, from weights for the size of timm."""
    found = find_model(name, 0, size)
    known = timm.get_pretrained_cfg(name)
    assert found.normalization['mean'] == pytest.approx([255 * x for x in known.mean], abs=1e-3)
    assert found.normalization['std'] == pytest.approx([255 * x for x in known.std], abs=1e-3)

    torch.manual_seed(0)
    theirs = timm.create_model(name, num_classes=0)
    weights = theirs.state_dict()
    for key in weights:
        if 'pos_embed' in key:
            weights[key].normal_()
    torch.save(weights, tmp_path / 'weights.pth')
    arguments = {key: found.config[key] for key in ('img_size',) if key in found.config}
    theirs = timm.create_model(
        name,
        num_classes=0,
        pretrained=True,
        pretrained_cfg_overlay=dict(file=str(tmp_path / 'weights.pth'), custom_load=False),
        **arguments,
    ).eval()
    ours = build_classifier(found.config).eval()
    load_weights(ours, str(tmp_path / 'weights.pth'), 'teacher_checkpoint')
    images = torch.randn(2, 3, size, size)
    with torch.no_grad():
        feature = TappedModel(ours, FeatureRecorder())(images, ['feature'])['feature']
        wanted = theirs.forward_head(theirs.forward_features(images), pre_logits=True)
    assert feature.std() > 0 and torch.equal(feature, wanted)


def test_a_network_that_interpolates_its_position_embedding():
    """CLIP's ResNets do, so weights of their own size load for images of another."""
    assert 'img_size' not in find_model('resnet50_clip', 0, 64).config
    assert find_model('botnet26t_256', 0, 64).config['img_size'] == 64

"""Taps of the stages, logits and features of every family."""

from __future__ import annotations

import pytest
import torch
from helpers import NUM_CLASSES
from mmengine.logging import MMLogger
from mmpretrain.models import MobileNetV2
from torch import nn
from torch.testing import assert_close

from mldr_kd_mm import ConfigError, FeatureRecorder
from mldr_kd_mm.models.taps.stages import (
    INPUT,
    STAGES,
    feature_tap,
    fixed_size,
    logits_tap,
    stage_taps,
)
from mldr_kd_mm.registry import MODELS


def classifier(width: int, **backbone) -> dict:
    return dict(
        type='ImageClassifier',
        backbone=backbone,
        neck=dict(type='GlobalAveragePooling'),
        head=dict(type='LinearClsHead', num_classes=NUM_CLASSES, in_channels=width),
    )


def vit(
    depth: int = 12, type='VisionTransformer', head='VisionTransformerClsHead', **kwargs
) -> dict:
    arch = dict(embed_dims=16, num_layers=depth, num_heads=2, feedforward_channels=32)
    return dict(
        type='ImageClassifier',
        backbone=dict(type=type, arch=arch, **(dict(img_size=32, patch_size=8) | kwargs)),
        head=dict(type=head, num_classes=NUM_CLASSES, in_channels=16),
    )


def timm(name: str, **kwargs) -> dict:
    return dict(type='TimmClassifier', model_name=name, num_classes=NUM_CLASSES, **kwargs)


def small_timm_vit(depth: int = 12, **kwargs) -> dict:
    kwargs = dict(img_size=32, patch_size=8, embed_dim=24, depth=depth) | kwargs
    return timm('vit_tiny_patch16_224', **kwargs)


DEIT_SMALL = vit() | dict(
    backbone=dict(type='VisionTransformer', arch='deit-small', img_size=32, patch_size=8),
    head=dict(type='VisionTransformerClsHead', num_classes=NUM_CLASSES, in_channels=384),
)

# It has no stages, and its backbone contains the linear layer.
LENET = dict(
    type='ImageClassifier',
    backbone=dict(type='LeNet5', num_classes=NUM_CLASSES),
    head=dict(type='ClsHead'),
)

# It pools without a neck.
CONVNEXT = dict(
    type='ImageClassifier',
    backbone=dict(type='ConvNeXt', arch='atto'),
    head=dict(type='LinearClsHead', num_classes=NUM_CLASSES, in_channels=320),
)

# Config, widths and strides of the stages: OFA-KD's and MLDR-KD's taps. test_architectures.py has
# the other families.
CNNS = {
    'resnet18': (classifier(512, type='ResNet', depth=18), [64, 128, 256, 512], [4, 8, 16, 32]),
    'resnet50': (classifier(2048, type='ResNet', depth=50), [256, 512, 1024, 2048], [4, 8, 16, 32]),
    'resnet18_cifar': (
        classifier(512, type='ResNet_CIFAR', depth=18),
        [64, 128, 256, 512],
        [1, 2, 4, 8],
    ),
    'mobilenet_v2': (classifier(1280, type='MobileNetV2'), [24, 32, 96, 1280], [4, 8, 16, 32]),
    'mobilenet_v2_cifar': (
        classifier(1280, type='MobileNetV2_CIFAR'),
        [24, 32, 96, 1280],
        [1, 2, 4, 8],
    ),
    'convnext': (CONVNEXT, [40, 80, 160, 320], [4, 8, 16, 32]),
    'timm resnet18': (timm('resnet18'), [64, 128, 256, 512], [4, 8, 16, 32]),
    'timm mobilenetv2_100': (timm('mobilenetv2_100'), [24, 32, 96, 1280], [4, 8, 16, 32]),
}

# Config, tapped blocks, width of the tokens.
COLUMNS = {
    'vit depth 4': (vit(4), [0, 1, 2, 3], 16),
    'vit depth 12': (vit(12), [1, 3, 9, 11], 16),
    'vit depth 24': (vit(24), [3, 7, 19, 23], 16),
    'deit-small': (DEIT_SMALL, [1, 3, 9, 11], 384),
    'distilled deit': (
        vit(12, type='DistilledVisionTransformer', head='DeiTClsHead'),
        [1, 3, 9, 11],
        16,
    ),
    'timm vit depth 12': (small_timm_vit(12), [1, 3, 9, 11], 24),
    'timm vit depth 6': (small_timm_vit(6), [0, 1, 4, 5], 24),
}

ALL = {
    key: (CNNS | COLUMNS)[key][0]
    for key in (
        'resnet18_cifar',
        'mobilenet_v2_cifar',
        'convnext',
        'timm resnet18',
        'timm mobilenetv2_100',
        'vit depth 4',
        'distilled deit',
        'timm vit depth 6',
    )
}


@pytest.fixture(params=ALL)
def model(request):
    torch.manual_seed(0)
    return MODELS.build(ALL[request.param]).eval()


@torch.no_grad()
def record_of(model, names=STAGES, size=32):
    with FeatureRecorder()(model, names) as record:
        record['output'] = model(torch.randn(1, 3, size, size))
    return record


@pytest.mark.parametrize(('config', 'widths', 'strides'), CNNS.values(), ids=CNNS)
def test_stages_of_a_cnn(config, widths, strides):
    record = record_of(MODELS.build(config).eval(), size=64)
    shapes = [tuple(record[stage].shape) for stage in STAGES]
    assert shapes == [
        (1, width, 64 // stride, 64 // stride)
        for width, stride in zip(widths, strides, strict=True)
    ]


@pytest.mark.parametrize(('config', 'blocks', 'width'), COLUMNS.values(), ids=COLUMNS)
def test_stages_of_a_column_of_blocks(config, blocks, width):
    model = MODELS.build(config).eval()
    assert [int(path.split('.')[-1]) for path in stage_taps(model).values()] == blocks
    record = record_of(model)
    # 16 patches and the prefix tokens.
    tokens = 18 if 'Distilled' in type(getattr(model, 'backbone', None)).__name__ else 17
    assert {tuple(record[stage].shape) for stage in STAGES} == {(1, tokens, width)}


@pytest.mark.parametrize('depth', [4, 5, 7, 13, 32])
def test_stages_of_any_depth_ascend_to_the_last_block(depth):
    taps = stage_taps(MODELS.build(vit(depth))).values()
    blocks = [int(path.split('.')[-1]) for path in taps]
    assert sorted(set(blocks)) == blocks
    assert blocks[-1] == depth - 1


def test_blocks_are_tapped_before_the_final_norm():
    model = MODELS.build(vit(4)).eval()
    record = record_of(model, [*STAGES, 'feature'])
    assert_close(model.backbone.ln1(record['stage4'])[:, 0], record['feature'])


def test_a_subclass_is_of_the_family():
    """A subclass of a known backbone has the same stages."""

    class Other(MobileNetV2):
        pass

    assert stage_taps(Other()) == stage_taps(MobileNetV2())


def test_logits_and_feature(model):
    """The last linear layer maps the feature to the logits."""
    record = record_of(model, ['logits', 'feature'])
    assert logits_tap(model) in ('head', 'model')
    assert record['logits'].shape == (1, NUM_CLASSES)
    assert_close(record['logits'], record['output'], rtol=0, atol=0)
    path = feature_tap(model)
    assert path.endswith(INPUT)
    last = model.get_submodule(path.removesuffix(INPUT))
    assert record['feature'].shape == (1, last.in_features)
    if 'Distilled' not in type(getattr(model, 'backbone', None)).__name__:  # its heads are averaged
        assert_close(last(record['feature']), record['logits'], rtol=0, atol=0)


def test_logits_of_any_other_model():
    assert logits_tap(nn.Sequential(nn.Linear(3, 2))) == ''
    assert feature_tap(nn.Sequential(nn.Linear(3, 2), nn.ReLU())) == '0:input'
    fully_convolutional = nn.Sequential(nn.Conv2d(3, 8, 3), nn.Conv2d(8, 2, 1), nn.ReLU())
    assert feature_tap(fully_convolutional) == '1:input'


class TestFewerStages:
    @pytest.mark.parametrize(
        ('config', 'count'),
        [(vit(3), 3), (small_timm_vit(2), 2), (timm('levit_128s'), 3), (timm('nest_tiny'), 3)],
        ids=['vit', 'timm vit', 'levit', 'nest'],
    )
    def test_what_there_is(self, config, count):
        taps = stage_taps(MODELS.build(config))
        assert list(taps) == list(STAGES[:count])
        assert len(set(taps.values())) == count

    def test_is_said(self, tmp_path):
        log = tmp_path / 'log'
        MMLogger.get_instance('fewer-stages', log_file=str(log))
        stage_taps(MODELS.build(vit(3)))
        assert "taps='stages': ImageClassifier(VisionTransformer) has 3: " in log.read_text()


class TwoStreams(nn.Module):
    """Returns a map and tokens from each block, like Conformer and TNT."""

    class Block(nn.Module):
        def __init__(self, stride):
            super().__init__()
            self.conv = nn.Conv2d(3, 3, 3, stride, padding=1)

        def forward(self, pair):
            return self.conv(pair[0]), pair[1]

    def __init__(self):
        super().__init__()
        self.layers = nn.ModuleList(self.Block(stride) for stride in (1, 2, 2, 2))

    def forward(self, image):
        pair = image, image.new_zeros(1, 5)
        for layer in self.layers:
            pair = layer(pair)
        return pair[0].mean((2, 3))


def test_one_of_several_tensors():
    model = TwoStreams()
    taps = stage_taps(model)
    assert list(taps.values()) == [f'layers.{i}:0' for i in range(4)]
    with FeatureRecorder(taps)(model) as record:
        model(torch.zeros(1, 3, 32, 32))
    assert record['stage4'].shape == (1, 3, 4, 4)


def test_what_is_rewritten_in_place_is_no_stage():
    model = nn.Sequential(
        *(nn.Conv2d(3, 3, 3, 2, padding=1) for _ in range(4)), nn.Conv2d(3, 3, 1), nn.ReLU(True)
    )
    assert list(stage_taps(model).values()) == ['0', '1', '2', '5']


class TestSideEffects:
    def test_modes_and_statistics_stay(self):
        model = MODELS.build(CNNS['resnet18'][0])
        model.backbone.layer2.eval()
        before = {name: module.training for name, module in model.named_modules()}
        state = {name: value.clone() for name, value in model.state_dict().items()}
        stage_taps(model)
        assert {name: module.training for name, module in model.named_modules()} == before
        assert_close(model.state_dict(), state, rtol=0, atol=0)
        assert all(not module._forward_hooks for module in model.modules())


class TestErrors:
    def test_no_stages(self):
        class Flat(nn.Module):
            def __init__(self):
                super().__init__()
                self.trunk = nn.Sequential(nn.Flatten(), nn.Linear(3 * 32 * 32, 8))
                self.head = nn.Linear(8, 2)

            def forward(self, image):
                return self.head(self.trunk(image))

        with pytest.raises(ConfigError) as caught:
            stage_taps(Flat(), (3, 32, 32))
        first, *tree = str(caught.value).splitlines()
        assert first.startswith("taps='stages': no stages found in Flat; name them, as in taps=")
        assert [line.strip() for line in tree] == [
            'trunk: Sequential',
            'trunk.0: Flatten',
            'trunk.1: Linear',
            'head: Linear',
        ]

    def test_depth_of_the_tree(self):
        """The error lists two levels of the backbone, even if it is wrapped."""

        class Flat(nn.Module):
            def __init__(self):
                super().__init__()
                self.backbone = nn.Sequential(nn.Flatten(), nn.Sequential(nn.ReLU(), nn.ReLU()))
                self.backbone[1].append(nn.Sequential(nn.Linear(3, 3)))

            def forward(self, image):
                return image.mean((2, 3))

        with pytest.raises(ConfigError) as caught:
            stage_taps(Flat(), (3, 32, 32))
        paths = [line.split(':')[0].strip() for line in str(caught.value).splitlines()[1:]]
        assert paths == [
            'backbone',
            'backbone.0',
            'backbone.1',
            *(f'backbone.1.{i}' for i in range(3)),
        ]

    @pytest.mark.parametrize(
        ('backbone', 'indices'),
        [
            (dict(type='SwinTransformer', arch='tiny'), (0, 1, 2, 3)),
            (dict(type='ConvNeXt', arch='atto'), (1, 3)),
            (dict(type='ResNet', depth=18), (2,)),
        ],
        ids=['swin', 'convnext', 'resnet'],
    )
    def test_out_indices(self, backbone, indices):
        model = MODELS.build(dict(backbone, out_indices=indices))
        with pytest.raises(ConfigError) as caught:
            stage_taps(model)
        assert str(caught.value).startswith(f'out_indices={indices}: must be the last stage, 3, ')

    def test_harmless_out_indices(self):
        """A ResNet's outputs have no parameters of their own."""
        config = classifier(512, type='ResNet', depth=18, out_indices=(0, 1, 2, 3))
        assert list(stage_taps(MODELS.build(config))) == list(STAGES)

    @pytest.mark.parametrize(
        ('config', 'size'),
        [(LENET, (3, 32, 32)), (small_timm_vit(4), (3, 40, 48))],
        ids=['channels', 'size'],
    )
    def test_image_that_does_not_fit(self, config, size):
        with pytest.raises(ConfigError) as caught:
            stage_taps(MODELS.build(config), size)
        assert str(caught.value).startswith(f'input_size={size}: ')
        assert '\n' not in str(caught.value)

    @pytest.mark.parametrize(
        ('make', 'name'),
        [
            (lambda: nn.Sequential(nn.Conv2d(3, 8, 3)), 'Sequential'),
            (lambda: MODELS.build(LENET), 'ImageClassifier(LeNet5)'),
        ],
        ids=['no classifier', 'logits of the backbone'],
    )
    def test_no_linear_layer(self, make, name):
        with pytest.raises(ConfigError) as caught:
            feature_tap(make())
        assert f'no last linear layer found in {name}' in str(caught.value)
        assert "taps=dict(feature='" in str(caught.value)


@pytest.mark.parametrize(
    ('config', 'size'),
    [
        (vit(img_size=32), (32, 32)),
        (vit(img_size=(16, 32)), (16, 32)),
        (classifier(64, type='MlpMixer', arch='s', img_size=64, patch_size=32), (64, 64)),
        (classifier(512, type='ResNet', depth=18), None),
        (classifier(1280, type='MobileNetV2'), None),
        (small_timm_vit(img_size=48), (48, 48)),
        (small_timm_vit(img_size=(16, 32)), (16, 32)),
        (timm('mixer_s32_224', img_size=64), (64, 64)),
        (timm('resnet18'), None),
        (timm('convnext_atto'), None),
    ],
    ids=[
        'vit',
        'vit of two sizes',
        'mixer',
        'resnet',
        'mobilenet',
        'timm vit',
        'timm vit of two sizes',
        'timm mixer',
        'timm resnet',
        'timm convnext',
    ],
)
def test_fixed_size(config, size):
    assert fixed_size(MODELS.build(config)) == size

"""MSDF against golden values, and its properties."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from timm.models.vision_transformer import Block
from torch import nn
from torch.testing import assert_close

from mldr_kd_mm import ConfigError, MSDFNeck
from mldr_kd_mm.models.necks import msdf

# Weights, inputs and outputs of the authors' release, in float64.
GOLDEN = np.load(Path(__file__).parents[2] / 'data' / 'msdf.npz')
OUTPUTS = ('stage_logits', 'fused_logits', 'fusion_weights')


def maps(widths, sizes, batch=3, dtype=torch.float32, seed=0) -> list[torch.Tensor]:
    """Return one feature map per stage."""
    generator = torch.Generator().manual_seed(seed)
    sizes = [(size, size) if isinstance(size, int) else size for size in sizes]
    return [
        torch.randn(batch, width, *size, generator=generator, dtype=dtype)
        for width, size in zip(widths, sizes, strict=True)
    ]


@pytest.mark.parametrize(
    ('classes', 'gate_dim', 'said'),
    [
        (21841, None, 'its gate has 1,975 M parameters for 21,841 classes'),
        (21841, 768, None),
        (1000, None, None),
    ],
)
def test_a_large_gate_is_announced(classes, gate_dim, said, monkeypatch):
    logged = []
    monkeypatch.setattr(msdf, 'print_log', lambda message, *args: logged.append(message))
    with torch.device('meta'):
        MSDFNeck([8], 768, num_classes=classes, gate_dim=gate_dim)
    assert (said in logged[0] and 'set neck.gate_dim' in logged[0]) if said else not logged


class TestGolden:
    @pytest.fixture
    def neck(self):
        neck = MSDFNeck(in_channels=[8, 16, 32, 64], project_dim=64, num_classes=10).double()
        weights = [key for key in GOLDEN if not key.startswith(('input.', 'output.'))]
        # Order and shapes are the same; only the names differ.
        state = dict(zip(neck.state_dict(), weights, strict=True))
        neck.load_state_dict({ours: torch.from_numpy(GOLDEN[key]) for ours, key in state.items()})
        return neck

    @pytest.mark.parametrize('mode', ['eval', 'train'])
    def test_values(self, neck, mode):
        features = [torch.from_numpy(GOLDEN[f'input.stage{i}']).double() for i in range(1, 5)]
        output = neck.train(mode == 'train')(features)
        assert output._fields == OUTPUTS
        for name in OUTPUTS:
            expected = torch.from_numpy(GOLDEN[f'output.{mode}.{name}'])
            assert_close(getattr(output, name), expected, rtol=1e-8, atol=1e-10)


@pytest.mark.parametrize('training', [True, False], ids=['train', 'eval'])
@pytest.mark.parametrize(
    ('widths', 'sizes'),
    [
        ([4, 8, 16, 32], [16, 8, 4, 2]),
        ([4, 8, 16, 32], [(15, 9), (7, 5), (3, 3), (1, 2)]),
        ([6, 3, 5, 4], [4, 4, 4, 4]),
        ([4], [3]),
        ([4, 8], [4, 2]),
        ([4, 8, 8, 8, 8], [16, 8, 4, 2, 1]),
    ],
    ids=['four', 'odd sizes', 'narrowing', 'one stage', 'two stages', 'five stages'],
)
class TestOutput:
    @pytest.fixture
    def output(self, widths, sizes, training):
        neck = MSDFNeck(in_channels=widths, project_dim=12, num_classes=5).train(training)
        return neck(maps(widths, sizes))

    def test_shapes(self, output, widths):
        assert output.stage_logits.shape == (len(widths), 3, 5)
        assert output.fused_logits.shape == (3, 5)
        assert output.fusion_weights.shape == (3, len(widths), 5)

    def test_weights_sum_to_one_over_the_stages(self, output):
        assert (output.fusion_weights > 0).all()
        assert_close(output.fusion_weights.sum(1), torch.ones(3, 5))

    def test_fused_is_the_weighted_sum(self, output):
        expected = torch.einsum('bsc,sbc->bc', output.fusion_weights, output.stage_logits)
        assert_close(output.fused_logits, expected)


def test_maps_of_one_pixel():
    neck = MSDFNeck(in_channels=[4, 8, 16, 32], num_classes=5).eval()
    output = neck(maps(neck.in_channels, [1] * 4, batch=1))
    assert all(value.isfinite().all() for value in output)


def test_samples_are_independent_in_eval():
    neck = MSDFNeck(in_channels=[4, 8], num_classes=5).eval()
    features = maps([4, 8], [4, 2])
    together = neck(features)
    alone = neck([feature[1:2] for feature in features])
    assert_close(together.fused_logits[1:2], alone.fused_logits)


def test_gradients_reach_everything():
    neck = MSDFNeck(in_channels=[4, 8, 16, 32], num_classes=5).double()
    features = [
        x.requires_grad_() for x in maps(neck.in_channels, [8, 4, 2, 1], dtype=torch.float64)
    ]
    output = neck(features)
    output.fused_logits.square().sum().backward()
    gradients = {name: p.grad for name, p in neck.named_parameters()}
    gradients |= {f'stage{i + 1}': feature.grad for i, feature in enumerate(features)}
    # The softmax over the stages cancels what all stages have in common.
    common = gradients.pop('gate.2.bias')
    assert_close(common, torch.zeros_like(common), rtol=0, atol=1e-12)
    assert [name for name, grad in gradients.items() if grad is None or not grad.any()] == []


class TestWidths:
    def test_defaults(self):
        neck = MSDFNeck(in_channels=[4, 8, 24], num_classes=5)
        assert neck.gate[0].weight.shape == (4 * 5, 24)
        assert {p['classifier'].in_features for p in neck.projectors} == {24}

    def test_explicit(self):
        neck = MSDFNeck(in_channels=[4, 8, 24], project_dim=6, num_classes=5, gate_dim=7)
        assert neck.gate[0].weight.shape == (7, 6)
        assert {p['classifier'].in_features for p in neck.projectors} == {6}


def test_without_a_gate_all_stages_weigh_the_same():
    neck = MSDFNeck(in_channels=[4, 8], num_classes=5, gate_dim=0)
    output = neck([torch.randn(3, 4, 4, 4), torch.randn(3, 8, 2, 2)])
    assert_close(output.fused_logits, output.stage_logits.mean(0))
    assert_close(output.fusion_weights, torch.full((3, 2, 5), 0.5))
    output.fused_logits.sum().backward()
    assert all(parameter.grad is not None for parameter in neck.parameters())
    assert not any(name.startswith('gate') for name in neck.state_dict())


def test_initialisation():
    torch.manual_seed(0)
    neck = MSDFNeck(in_channels=[32, 64, 128, 256], num_classes=20)
    kinds = {kind: 0 for kind in (nn.Conv2d, nn.BatchNorm2d, nn.Linear)}
    for module in neck.modules():
        kinds |= {kind: kinds[kind] + isinstance(module, kind) for kind in kinds}
        if isinstance(module, nn.Conv2d):
            # Kaiming-normal with torch's fan-out, which ignores groups.
            height, width = module.kernel_size
            expected = (2 / (module.out_channels * height * width)) ** 0.5
            assert module.weight.std().item() == pytest.approx(expected, rel=0.15)
        elif isinstance(module, nn.BatchNorm2d):
            assert (module.weight == 1).all()
            assert (module.bias == 0).all()
        elif isinstance(module, nn.Linear):
            assert module.weight.std().item() == pytest.approx(0.02, rel=0.1)
            assert (module.bias == 0).all()
    # 3 + 2 + 1 blocks with four convolutions and two norms each, and the last stage's convolution.
    assert list(kinds.values()) == [25, 12, 6]


class TestErrors:
    def message(self, call):
        with pytest.raises(ConfigError) as caught:
            call()
        assert '\n' not in str(caught.value)
        return str(caught.value)

    @pytest.mark.parametrize(
        ('field', 'value'),
        [
            ('in_channels', None),
            ('in_channels', []),
            ('in_channels', [8, 0]),
            ('project_dim', 0),
            ('project_dim', -3),
            ('num_classes', 0),
            ('gate_dim', -1),
            ('gate_dim', False),
            ('num_classes', True),
            ('in_channels', 8),
        ],
    )
    def test_arguments(self, field, value):
        config = dict(in_channels=[4, 8], num_classes=5) | {field: value}
        shown = min(value) if value and isinstance(value, list) else value
        assert self.message(lambda: MSDFNeck(**config)).startswith(f'{field}={shown}: must ')

    @pytest.mark.parametrize(
        ('widths', 'found'), [([4], '(4,)'), ([4, 8, 8], '(4, 8, 8)'), ([8, 4], '(8, 4)')]
    )
    def test_other_features_than_its_own(self, widths, found):
        neck = MSDFNeck(in_channels=[4, 8], num_classes=5)
        message = self.message(lambda: neck(maps(widths, [4] * len(widths))))
        assert message == f'in_channels=(4, 8): must be {found}, the widths of the features'

    @pytest.mark.parametrize(
        ('features', 'grids', 'reason'),
        [
            ([(2, 4, 3, 3), (2, 17, 8)], None, 'must be (H, W) for tokens'),
            ([(2, 4, 3, 3), (2, 8, 4, 4)], [None, (4, 4)], 'None for a map (B, C, H, W)'),
            ([(2, 4, 3, 3), (2, 18, 8)], [None, (4, 4)], '(4, 4) has 16 tokens'),
            ([(2, 4, 3, 3), (2, 15, 8)], [None, (4, 4)], 'those of the feature, 15'),
            ([(2, 4), (2, 16, 8)], [None, (4, 4)], 'must be maps (B, C, H, W) or tokens'),
        ],
        ids=['tokens', 'map', 'too many tokens', 'too few tokens', 'neither'],
    )
    def test_other_forms_than_its_own(self, features, grids, reason):
        neck = MSDFNeck(in_channels=[4, 8], num_classes=5, grids=grids)
        message = self.message(lambda: neck([torch.zeros(shape) for shape in features]))
        assert reason in message

    @pytest.mark.parametrize(
        'grids', [[None], [(4, 4), (2,)], [(4, 4), (0, 2)], [(4, 4), ('2', 2)], [4, 4], 4, 'ab']
    )
    def test_grids(self, grids):
        message = self.message(lambda: MSDFNeck(in_channels=[4, 8], num_classes=5, grids=grids))
        assert message.startswith(
            f'grids={grids!r}: must have (H, W), or None for a map, for each of 2'
        )


class TestTokens:
    @pytest.mark.parametrize('class_token', [0, 1])
    def test_every_parameter_and_stage_is_trained(self, class_token):
        grids = [(28, 28), (14, 14), (7, 7), (7, 7)]
        neck = MSDFNeck([8, 12, 16, 16], num_classes=5, grids=grids)
        features = [
            torch.randn(2, class_token + height * width, channels, requires_grad=True)
            for channels, (height, width) in zip(neck.in_channels, grids, strict=True)
        ]
        output = neck(features)
        assert output.stage_logits.shape == (4, 2, 5)
        output.fused_logits.square().sum().backward()
        gradients = {name: p.grad for name, p in neck.named_parameters()}
        gradients |= {f'stage{i + 1}': feature.grad for i, feature in enumerate(features)}
        gradients.pop('gate.2.bias')
        assert [name for name, grad in gradients.items() if grad is None or not grad.any()] == []

    def test_maps_and_tokens_in_one_student(self):
        neck = MSDFNeck([8, 16], num_classes=5, grids=[None, (3, 5)])
        output = neck([torch.randn(2, 8, 6, 10), torch.randn(2, 16, 16)])
        assert output.fused_logits.shape == (2, 5)

    def test_blocks(self):
        """METHOD.md: max(4 - s, 1) transformer blocks at stage s."""
        neck = MSDFNeck([8] * 4, num_classes=5, grids=[(4, 4)] * 4)
        counts = [
            sum(isinstance(module, Block) for module in projector['project'])
            for projector in neck.projectors
        ]
        assert counts == [3, 2, 1, 1]

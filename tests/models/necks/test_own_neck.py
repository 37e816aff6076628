"""Necks of one's own: any output names, read by losses, from taps of any names."""

from collections import namedtuple

import pytest
import torch
from helpers import NORMALIZATION, batch, mldr, resnet, timm_resnet, vit
from torch import nn

from mldr_kd_mm import ConfigError, Distiller
from mldr_kd_mm.evaluation.observer import Observer
from mldr_kd_mm.registry import MODELS

Pair = namedtuple('Pair', ['early', 'late'])
KD = dict(type='KDLoss')
MID = dict(type='FeatureRecorder', taps=dict(low='backbone.layer1', tmid='backbone.layer3'))


@MODELS.register_module()
class OwnNeck(nn.Module):
    """Logits of each feature, in a chosen kind of output.

    Args:
        in_channels: Width of each feature.
        num_classes: Number of classes.
        make: What to return for a list of logits.
    """

    def __init__(self, in_channels, num_classes, make=None):
        super().__init__()
        self.heads = nn.ModuleList(nn.Linear(width, num_classes) for width in in_channels)
        self.make = make or (lambda heads: {f'head{i}': head for i, head in enumerate(heads)})

    def forward(self, features):
        pooled = [x.flatten(2).mean(2) if x.dim() == 4 else x.mean(1) for x in features]
        return self.make([head(x) for head, x in zip(self.heads, pooled, strict=True)])


def distiller(student, neck=None, recorder=None, loss=KD, **kwargs):
    """Build a Distiller that compares these tensors of the student with the teacher's logits."""
    entry = dict(loss=loss, student=student, teacher='logits', name='own')
    config = mldr(
        neck=neck or dict(type='OwnNeck'), student_recorder=recorder, losses=[entry], **kwargs
    )
    return MODELS.build(config)


def losses_of(model):
    losses = model(**model.data_preprocessor(batch(), True), mode='loss')
    model.parse_losses(losses)[0].backward()
    return losses


class TestOutputs:
    def test_a_dict(self):
        model = distiller(['logits', 'head0', 'head3'])
        losses = losses_of(model)
        assert {*losses} == {'loss', 'loss_own_logits', 'loss_own_head0', 'loss_own_head3'}
        used = [model.neck.heads[i].weight.grad is not None for i in range(4)]
        assert used == [True, False, False, True]

    def test_a_named_tuple(self):
        make = lambda heads: Pair(heads[0], heads[-1])  # noqa: E731
        losses = losses_of(distiller(['early', 'late'], dict(type='OwnNeck', make=make)))
        assert {*losses} == {'loss', 'loss_own_early', 'loss_own_late'}

    def test_stages_and_weights_keep_their_meaning(self):
        def make(heads):
            stacked = torch.stack(heads)
            return dict(stage_logits=stacked, fusion_weights=stacked.softmax(0).transpose(0, 1))

        losses = losses_of(distiller('stage_logits', dict(type='OwnNeck', make=make)))
        stages = [f'stage{i}' for i in range(1, 5)]
        assert {*losses} == {
            'loss',
            *(f'loss_own_{stage}' for stage in stages),
            *(f'fusion_{stage}' for stage in stages),
        }

    @pytest.mark.parametrize(
        ('make', 'message'),
        [
            (list, 'neck: returned a list; must return a dict or NamedTuple of name -> tensor'),
            (torch.stack, 'neck: returned a Tensor; must return a dict or NamedTuple'),
            (lambda heads: None, 'neck: returned a NoneType; must'),
            (lambda heads: {}, 'neck: returned a dict; must return a dict or NamedTuple of name'),
            (lambda heads: dict(heads=heads), 'neck: returned a dict; must'),
            (lambda heads: {0: heads[0]}, 'neck: returned a dict; must'),
            (lambda heads: dict(logits=heads[0]), "neck: output 'logits': must have another name"),
            (lambda heads: dict(stage2=heads[0]), "neck: output 'stage2': must have another name"),
            (
                lambda heads: dict(head0=heads[0], fusion_weights=heads[0]),
                r"neck: output 'fusion_weights': has shape \(1, 10\); must be \(B, 4, C\)",
            ),
            (
                lambda heads: dict(other=heads[0]),
                "own: student='head0': unknown tensor; available: logits, feature, stage1, stage2, "
                'stage3, stage4, other$',
            ),
            (lambda heads: heads[9], 'neck: list index out of range|neck: IndexError'),
        ],
    )
    def test_mistake_is_one_line(self, make, message):
        with pytest.raises(ConfigError, match=message) as caught:
            distiller('head0', dict(type='OwnNeck', make=make))
        assert '\n' not in str(caught.value)

    def test_what_shipped_necks_add_is_named_without_one(self):
        message = "unknown tensor; available: .*; neck=dict\\(type='MSDFNeck'\\) adds it"
        entry = dict(loss=KD, student='fused_logits', teacher='logits')
        with pytest.raises(ConfigError, match=message):
            MODELS.build(mldr(neck=None, losses=[entry]))

    def test_observed(self):
        """Figures and reports need neither fused logits nor fusion weights."""
        model = distiller('head0', recorder=MID).eval()
        observer = Observer(model)
        data = model.data_preprocessor(batch(), False)
        observer.add(data['inputs'], data['data_samples'])
        seen = observer.observations()
        assert seen.fused is None and seen.fusion_weights is None
        assert {*seen.student_stages} == {'low', 'tmid'}


class TestTaps:
    """A tap of any name is what a stage of that path is."""

    @pytest.mark.parametrize('neck', ['OwnNeck', 'MSDFNeck'])
    def test_a_neck_reads_them_in_order(self, neck):
        name = 'head1' if neck == 'OwnNeck' else 'fused_logits'
        model = distiller(name, dict(type=neck), MID)
        assert model.neck_inputs == ['low', 'tmid']
        losses = losses_of(model)
        assert ('fusion_tmid' in losses) == (neck == 'MSDFNeck')

    def test_stages_are_preferred(self):
        recorder = dict(MID, taps=dict(MID['taps'], stage1='backbone.layer2'))
        assert distiller('head0', recorder=recorder).neck_inputs == ['stage1']

    @pytest.mark.parametrize('student', [resnet, timm_resnet, vit])
    def test_fitnet(self, student):
        """Widths and grids are found; the loss is that of a stage of the same path."""
        path = dict(resnet='backbone.layer2', timm_resnet='model.layer2', vit='backbone.layers.2')
        values = []
        for name in ('tmid', 'stage3'):
            taps = dict(
                student_recorder={name: path[student.__name__]},
                teacher_recorder={name: 'backbone.layers.1'},
            )
            recorders = {key: dict(type='FeatureRecorder', taps=each) for key, each in taps.items()}
            hint = dict(loss=dict(type='FitNetLoss'), student=[name], teacher=[name], name='hint')
            torch.manual_seed(0)
            model = MODELS.build(mldr(student=student(), neck=None, losses=[hint], **recorders))
            model.init_weights()
            values.append(losses_of(model.eval())[f'loss_hint_{name}'])
        assert values[0] == values[1] > 0

    @pytest.mark.parametrize('side', ['student', 'teacher'])
    def test_a_path_that_no_loss_reads_is_checked(self, side):
        path = 'backbone.layer9' if side == 'student' else 'backbone.layers.99'
        recorder = {f'{side}_recorder': dict(type='FeatureRecorder', taps=dict(idle=path))}
        entry = dict(loss=KD, student='logits', teacher='logits')
        with pytest.raises(ConfigError, match=f"taps: idle='{path}' is not a module of .*near:"):
            MODELS.build(mldr(neck=None, losses=[entry], **recorder))

    def test_a_vector_is_left_as_it_is(self):
        """Only what a neck reads must be a map or tokens."""
        taps = dict(pooled='neck', tmid='backbone.layer3')
        recorder = dict(type='FeatureRecorder', taps=taps)
        entry = dict(loss=dict(type='RKDLoss'), student='pooled', teacher='feature')
        model = MODELS.build(mldr(neck=None, losses=[entry], student_recorder=recorder))
        assert losses_of(model)['loss_kd_pooled'].isfinite()
        with pytest.raises(ConfigError, match=r'taps: pooled of .* has shape \(1, 64\): must be a'):
            MODELS.build(mldr(student_recorder=recorder))

    def test_no_taps(self):
        with pytest.raises(ConfigError, match='the neck needs taps'):
            Distiller(
                teacher=vit(),
                student=resnet(),
                losses=[dict(loss=KD)],
                neck=dict(type='OwnNeck'),
                student_recorder=dict(type='FeatureRecorder', taps={}),
                data_preprocessor=NORMALIZATION,
            )

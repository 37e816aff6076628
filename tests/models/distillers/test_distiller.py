"""The Distiller, with real models and mmengine's real Runner."""

from __future__ import annotations

import copy
import gc
import json

import pytest
import torch
from helpers import NORMALIZATION, NUM_CLASSES, batch, mldr, resnet, timm_resnet, train, vit
from mmengine.model import BaseModel, ExponentialMovingAverage
from mmengine.optim import OptimWrapper, build_optim_wrapper
from torch.testing import assert_close

from mldr_kd_mm import ConfigError, DFRALoss, Distiller, OFALoss
from mldr_kd_mm.models.taps.stages import STAGES
from mldr_kd_mm.registry import MODELS

HEADS = ['logits', 'stage1', 'stage2', 'stage3', 'stage4', 'fused']


def build(config, seed=0):
    """Seed, build and initialise a Distiller, as the Runner does."""
    torch.manual_seed(seed)
    model = MODELS.build(config)
    model.init_weights()
    return model


def logits_that_matter(distiller):
    """Give the teacher, whose head starts at zero, logits that differ."""
    torch.manual_seed(1)
    torch.nn.init.normal_(distiller.teacher.model.head.layers.head.weight)
    return distiller


def losses_of(distiller, data=None):
    return distiller(**distiller.data_preprocessor(data or batch(), True), mode='loss')


@pytest.fixture(params=[resnet, timm_resnet], ids=['mmpretrain', 'timm'])
def distiller(request):
    return logits_that_matter(build(mldr(student=request.param())))


def crd(num_samples=20):
    """Return the config of CRD on the penultimate features, for this many samples."""
    loss = dict(type='CRDLoss', num_samples=num_samples, negatives=3, dim=8)
    return dict(loss=loss, student='feature', teacher='feature', name='crd')


def numbered(data):
    """Return the batch with an index in the training set for each sample."""
    for number, sample in enumerate(data['data_samples']):
        sample.set_field(number, 'sample_idx', field_type='metainfo')
    return data


def all_hooks(model):
    return [h for m in model.modules() for h in (*m._forward_hooks, *m._forward_pre_hooks)]


class TestLoss:
    def test_names(self, distiller):
        names = [
            'loss',
            *(f'fusion_stage{i}' for i in range(1, 5)),
            *(f'loss_dfra_{h}' for h in HEADS),
        ]
        assert list(losses_of(distiller)) == names

    def test_values(self, distiller):
        """Each value is the loss of that head, computed by hand."""
        distiller.student.eval()  # a second pass must see the same batch statistics
        inputs = distiller.data_preprocessor(batch(), False)['inputs']
        teacher = distiller.teacher.model(inputs, mode='tensor')
        with distiller.tapped_student.recorder(distiller.student) as record:
            logits = distiller.student(inputs, mode='tensor')
        neck = copy.deepcopy(distiller.neck)([record[f'stage{i}'] for i in range(1, 5)])
        dfra = DFRALoss()
        expected = [dfra(z, teacher) for z in (logits, *neck.stage_logits, neck.fused_logits)]

        losses = losses_of(distiller)
        for head, value in zip(HEADS, expected, strict=True):
            assert_close(losses[f'loss_dfra_{head}'], value, rtol=1e-4, atol=1e-6)

    def test_sum_is_what_the_runner_minimises(self, distiller):
        losses = losses_of(distiller)
        total, log = distiller.parse_losses(losses)
        assert_close(total, sum(value for name, value in losses.items() if 'loss' in name))
        assert_close(log['loss'], total)
        assert_close(log['loss_student'], losses['loss'])  # of the student's own head
        assert {*log} == {*losses, 'loss_student'}

    def test_gradients_are_those_of_mmengines_sum(self, distiller):
        images = distiller.data_preprocessor(batch(), True)
        found = []
        for parse in (Distiller.parse_losses, BaseModel.parse_losses):
            distiller.zero_grad()
            torch.manual_seed(0)
            losses = distiller(**images, mode='loss')
            losses = {'loss_student': losses.pop('loss')} | losses
            total, log = parse(distiller, losses)
            total.backward()
            found.append((total, log, [p.grad for p in distiller.parameters()]))
        ours, theirs = found
        assert_close(ours[0], theirs[0], rtol=1e-6, atol=0)
        assert_close(ours[1].pop('loss'), theirs[1].pop('loss'), rtol=1e-6, atol=0)
        assert [*ours[1].items()] == [*theirs[1].items()]
        assert all(torch.equal(*pair) for pair in zip(ours[2], theirs[2], strict=True))

    def test_gradients_reach_student_and_neck(self, distiller):
        distiller.parse_losses(losses_of(distiller))[0].backward()
        assert all(p.grad is not None and p.grad.isfinite().all() for p in distiller.parameters())

    def test_weights_per_name(self):
        config = mldr()
        plain = losses_of(logits_that_matter(build(config)))
        config['losses'][0]['weight'] = [0.5, 2, 0]
        weighted = losses_of(logits_that_matter(build(config)))
        for head, weight in zip(HEADS, [0.5, 2, 2, 2, 2, 0], strict=True):
            assert_close(weighted[f'loss_dfra_{head}'], weight * plain[f'loss_dfra_{head}'])

    def test_without_neck(self):
        loss = dict(loss=dict(type='DFRALoss'), student='logits', name='kd')
        losses = losses_of(build(mldr(neck=None, losses=[loss])))
        assert list(losses) == ['loss', 'loss_kd_logits']

    def test_two_losses(self):
        config = mldr()
        second = dict(
            loss=dict(type='DFRALoss', alpha=0.0), student='fused_logits', name='relation'
        )
        config['losses'].append(second)
        assert 'loss_relation_fused' in losses_of(build(config))

    def test_autocast(self, distiller):
        with torch.autocast('cpu', torch.bfloat16):
            losses = losses_of(distiller)
        total, _ = distiller.parse_losses(losses)
        total.backward()
        assert total.isfinite()
        assert losses['loss_dfra_fused'].dtype == torch.float32

    def test_nothing_is_kept(self, distiller):
        before = all_hooks(distiller)
        losses = losses_of(distiller)
        assert all_hooks(distiller) == before
        assert all_hooks(distiller.teacher.model) == []
        graph = losses['loss'].grad_fn
        del losses, graph
        gc.collect()
        copy.deepcopy(distiller)  # fails where a module still holds a tensor with a graph


class TestTeacher:
    def test_is_not_in_the_tree(self, distiller):
        own = {id(p) for p in distiller.teacher.model.parameters()}
        assert own
        assert not own & {id(p) for p in distiller.parameters()}
        assert not any('teacher' in key for key in distiller.state_dict())
        assert not any('teacher' in name for name, _ in distiller.named_modules())
        wrapper = build_optim_wrapper(distiller, dict(optimizer=dict(type='SGD', lr=0.1)))
        groups = wrapper.optimizer.param_groups
        assert not own & {id(p) for group in groups for p in group['params']}

    def test_copies_share_it(self, distiller):
        ema = ExponentialMovingAverage(distiller)
        assert ema.module.teacher is distiller.teacher
        assert not any('teacher' in key for key in ema.state_dict())

    def test_follows_to(self, distiller):
        distiller.to(torch.float64)
        assert next(distiller.teacher.model.parameters()).dtype == torch.float64
        assert distiller.teacher.renormalize.scale.dtype == torch.float64

    def test_stays_in_eval_without_gradients(self, distiller):
        distiller.train()
        assert not distiller.teacher.model.training
        # In training mode its drop path of 0.5 would make two passes differ.
        images = torch.rand(4, 3, 32, 32)
        first, second = (distiller.teacher(images)['logits'] for _ in range(2))
        assert torch.equal(first, second)
        assert not first.requires_grad

    def test_gets_the_batch_as_its_config_wants_it(self):
        own = dict(mean=[10.0, 20.0, 30.0], std=[50.0, 60.0, 70.0], to_rgb=True)
        config = mldr(teacher=vit(img_size=64, data_preprocessor=own))
        distiller = logits_that_matter(build(config))
        data = batch()
        seen = []
        teacher = distiller.teacher.model
        handle = teacher.register_forward_pre_hook(lambda _, args: seen.append(args[0]))
        losses_of(distiller, copy.deepcopy(data))
        handle.remove()

        raw = data['inputs'].flip(1).float()
        mean, std = (torch.tensor(own[key]).reshape(3, 1, 1) for key in ('mean', 'std'))
        expected = torch.nn.functional.interpolate(
            (raw - mean) / std, (64, 64), mode='bilinear', antialias=True
        )
        assert_close(seen[0], expected, rtol=1e-4, atol=1e-4)

    def test_input_size_of_a_cnn_is_given(self):
        distiller = build(mldr(teacher=resnet(), teacher_input_size=(3, 48, 48)))
        assert distiller.teacher.resize(torch.zeros(1, 3, 32, 32)).shape[-2:] == (48, 48)


class TestStudent:
    @pytest.mark.parametrize('student', [resnet, timm_resnet])
    def test_starts_as_it_would_alone(self, student):
        distilled = build(mldr(student=student())).student
        alone = build(student())
        after = torch.rand(1)
        build(mldr(student=student()))
        assert torch.equal(after, torch.rand(1)), 'what is drawn afterwards differs too'
        for (name, ours), theirs in zip(
            distilled.named_parameters(), alone.parameters(), strict=True
        ):
            assert torch.equal(ours, theirs), name

    def test_is_what_runs_outside_training(self, distiller):
        distiller.eval()
        data = distiller.data_preprocessor(batch(), False)
        student = distiller.student
        assert torch.equal(distiller(data['inputs']), student(data['inputs']))
        ours = distiller(copy.deepcopy(data['inputs']), mode='predict')
        theirs = student(data['inputs'], mode='predict')
        assert all(
            torch.equal(a.pred_score, b.pred_score) for a, b in zip(ours, theirs, strict=True)
        )
        for a, b in zip(
            distiller.extract_feat(data['inputs']),
            student.extract_feat(data['inputs']),
            strict=True,
        ):
            assert torch.equal(a, b)

    def test_checkpoint_loads_again(self, distiller):
        """A TimmClassifier's own hooks would lose the keys of other modules."""
        other = build(mldr(student=copy.deepcopy(_config_of(distiller))), seed=5)
        other.load_state_dict(distiller.state_dict())
        for (name, a), b in zip(
            distiller.state_dict().items(), other.state_dict().values(), strict=True
        ):
            assert torch.equal(a, b), name

    def test_timm_weights_load_at_the_top(self):
        distiller = build(mldr(student=timm_resnet()))
        plain = build(timm_resnet(), seed=3)
        distiller.student.load_state_dict(plain.state_dict())
        assert torch.equal(distiller.student.model.fc.weight, plain.model.fc.weight)


def _config_of(distiller):
    return timm_resnet() if type(distiller.student).__name__ == 'TimmClassifier' else resnet()


class TestProbe:
    def test_widths(self):
        neck = build(mldr()).neck
        assert neck.in_channels == (8, 16, 32, 64)
        classifier = neck.projectors[0]['classifier']
        assert classifier.in_features == 64  # the student's, wider than the teacher's 32
        assert classifier.out_features == NUM_CLASSES

    def test_wider_teacher(self):
        neck = build(mldr(teacher=timm_resnet())).neck
        assert neck.projectors[0]['classifier'].in_features == 512

    def test_explicit_values_win(self):
        neck = build(mldr(neck=dict(type='MSDFNeck', project_dim=24, gate_dim=7))).neck
        assert neck.gate[0].weight.shape == (7, 24)

    def test_none_means_found(self):
        neck = build(mldr(neck=dict(type='MSDFNeck', in_channels=None, project_dim=None))).neck
        assert neck.in_channels == (8, 16, 32, 64)

    def test_own_taps(self):
        taps = {f'stage{i}': f'backbone.layer{i}' for i in (1, 2, 3)}
        distiller = build(mldr(student_recorder=dict(type='FeatureRecorder', taps=taps)))
        losses = losses_of(distiller)
        assert 'loss_dfra_stage3' in losses and 'loss_dfra_stage4' not in losses

    def test_leaves_batch_statistics_alone(self):
        distiller = build(mldr())
        assert distiller.student.backbone.bn1.num_batches_tracked == 0
        assert distiller.student.training


class TestMixup:
    @pytest.mark.parametrize('student', [resnet, timm_resnet])
    @pytest.mark.parametrize('augment', ['Mixup', 'CutMix'])
    def test_both_see_the_mixed_batch(self, student, augment):
        train_cfg = dict(augments=[dict(type=augment, alpha=1.0)])
        loss = dict(type='CrossEntropyLoss', use_soft=True)
        config = student(train_cfg=train_cfg)
        if config['type'] == 'TimmClassifier':
            config['loss'] = loss
        else:
            config['head']['loss'] = loss
        distiller = logits_that_matter(build(mldr(student=config)))
        data = distiller.data_preprocessor(batch(), True)
        scores = torch.stack([sample.gt_score for sample in data['data_samples']])
        assert ((scores > 0).sum(1) > 1).any(), 'nothing was mixed'

        seen = []
        handle = distiller.teacher.model.register_forward_pre_hook(
            lambda _, args: seen.append(args[0])
        )
        losses = distiller(**data, mode='loss')
        handle.remove()
        assert torch.equal(seen[0], data['inputs'])
        assert all(value.isfinite() for value in losses.values())


class TestRunner:
    def test_train_and_validate(self, tmp_path):
        train(mldr(), tmp_path / 'run', max_epochs=2)
        checkpoint = torch.load(tmp_path / 'run/epoch_2.pth', weights_only=False)
        weights = checkpoint['state_dict']
        assert {key.split('.')[0] for key in weights} == {'student', 'neck'}
        lines = _scalars(tmp_path / 'run')
        training = [line for line in lines if 'loss' in line]
        assert len(training) == 8
        assert all(f'loss_dfra_{head}' in line for head in HEADS for line in training)
        assert sum('accuracy/top1' in line for line in lines) == 2

    def test_ema(self, tmp_path):
        hooks = [dict(type='EMAHook', momentum=0.5)]
        runner = train(mldr(), tmp_path / 'run', custom_hooks=hooks)
        checkpoint = torch.load(tmp_path / 'run/epoch_1.pth', weights_only=False)
        for part in ('state_dict', 'ema_state_dict'):
            assert not any('teacher' in key for key in checkpoint[part])
        averaged = checkpoint['state_dict']['student.head.fc.weight']
        assert not torch.equal(averaged, runner.model.student.head.fc.weight.cpu())

    @pytest.mark.slow
    def test_compile_changes_nothing(self, tmp_path):
        """mmengine compiles the whole train_step; this backend runs the graphs unchanged."""
        plain = train(mldr(), tmp_path / 'plain')
        compiled = train(mldr(), tmp_path / 'compiled', compile=dict(backend='eager'))
        for (name, a), b in zip(
            plain.model.state_dict().items(), compiled.model.state_dict().values(), strict=True
        ):
            assert_close(a, b, rtol=1e-3, atol=1e-4, msg=name)

    @pytest.mark.skipif(not torch.cuda.is_available(), reason='AmpOptimWrapper needs a GPU')
    def test_amp(self, tmp_path):
        optim_wrapper = dict(type='AmpOptimWrapper', optimizer=dict(type='SGD', lr=0.01))
        runner = train(mldr(), tmp_path / 'run', optim_wrapper=optim_wrapper)
        assert all(p.isfinite().all() for p in runner.model.parameters())


def _scalars(work_dir):
    path = next(work_dir.glob('*/vis_data/scalars.json'))
    return [json.loads(line) for line in path.read_text().splitlines()]


class TestTokens:
    def test_a_grid_that_is_no_square(self):
        student = vit()
        student['backbone'].update(img_size=(16, 32), patch_size=4)
        distiller = build(mldr(student=student, input_size=(3, 16, 32)))
        assert distiller.neck.grids == ((4, 8),) * 4
        data = batch()
        data['inputs'] = data['inputs'][:, :, :16]
        assert all(loss.isfinite() for loss in losses_of(distiller, data).values())

    def test_width_of_the_neck(self):
        """The neck has the student's width, by OFA-KD's rule; the paper gives none for tokens."""
        distiller = build(mldr(teacher=timm_resnet(), student=vit()))
        assert distiller.neck.projectors[0]['classifier'].in_features == 32

    def test_size_that_the_student_fixes(self):
        config = mldr(student=vit(img_size=48))
        del config['input_size']
        assert build(config).neck.grids == ((4, 4),) * 4


class TestOtherLosses:
    """Inputs of losses besides logits: labels, indices, widths and pairs of features."""

    def test_labels(self):
        loss = dict(loss=dict(type='OFALoss', eps=2.0), student=['logits', 'stage_logits'])
        distiller = logits_that_matter(build(mldr(losses=[loss])))
        distiller.student.eval()
        data = distiller.data_preprocessor(batch(), False)
        target = torch.cat([sample.gt_label for sample in data['data_samples']])
        losses = distiller(**data, mode='loss')
        student = distiller.student(data['inputs'])
        teacher = distiller.teacher.model(data['inputs'], mode='tensor')
        assert_close(losses['loss_kd_logits'], OFALoss(2.0)(student, teacher, target))
        assert list(losses)[-5:] == [f'loss_kd_{head}' for head in ('logits', *STAGES)]

    def test_labels_softened_by_mixup(self):
        student = resnet(train_cfg=dict(augments=[dict(type='Mixup', alpha=1.0)]))
        loss = dict(loss=dict(type='OFALoss', eps=2.0))
        distiller = logits_that_matter(build(mldr(student=student, losses=[loss], neck=None)))
        seen = []
        distiller.losses[0].losses[0].register_forward_hook(
            lambda _, args, kwargs, __: seen.append(kwargs['target']), with_kwargs=True
        )
        assert losses_of(distiller)['loss_kd_logits'].isfinite()
        (target,) = seen
        assert target.shape == (8, NUM_CLASSES) and 0 < target.max(1).values.min() < 1

    def test_places_in_the_training_set(self):
        distiller = build(mldr(losses=[crd()], neck=None))
        bank = distiller.losses[0].losses[0].student_bank
        before = bank.clone()
        assert losses_of(distiller, numbered(batch()))['loss_crd_feature'] > 0
        moved = (bank != before).any(1)
        assert moved.tolist() == [True] * 8 + [False] * 12

    def test_widths_are_found(self):
        losses = [
            dict(loss=dict(type=kind), student='feature', teacher='feature', name=kind)
            for kind in ('CCLoss', 'RSDLoss')
        ]
        cc, rsd = (loss.losses[0] for loss in build(mldr(losses=losses)).losses)
        assert (cc.embed_student.in_features, cc.embed_teacher.in_features) == (64, 32)
        assert (rsd.decoupler[0].in_features, rsd.decoupler[-1].out_features) == (64, 32)

    def test_explicit_widths_win(self):
        loss = dict(loss=dict(type='CCLoss', student_width=7), student='feature', teacher='feature')
        with pytest.raises(ConfigError, match='^losses: kd: .*1x64 and 7x128'):
            build(mldr(losses=[loss]))

    @pytest.mark.parametrize(('teacher', 'student'), [(vit, resnet), (resnet, vit), (vit, vit)])
    def test_pairs_have_a_loss_each(self, teacher, student):
        names = ['stage1', 'stage4']
        loss = dict(loss=dict(type='FitNetLoss'), student=names, teacher=names, weight=[1, 3])
        config = mldr(teacher=teacher(), student=student(), losses=[loss], neck=None)
        distiller = build(config)
        (entry,) = distiller.losses
        assert len(entry.losses) == 2
        losses = losses_of(distiller)
        assert list(losses) == ['loss', 'loss_kd_stage1', 'loss_kd_stage4']
        distiller.parse_losses(losses)[0].backward()
        assert all(p.grad is not None for p in entry.parameters())

    def test_adaptors_are_trained_and_saved(self):
        loss = dict(loss=dict(type='RSDLoss'), student='feature', teacher='feature')
        distiller = build(mldr(losses=[loss]))
        wrapper = build_optim_wrapper(distiller, dict(optimizer=dict(type='SGD', lr=0.1)))
        trained = {id(p) for group in wrapper.param_groups for p in group['params']}
        assert {id(p) for p in distiller.losses.parameters()} <= trained
        saved = [name for name in distiller.state_dict() if name.startswith('losses.')]
        assert 'losses.0.losses.0.decoupler.0.weight' in saved
        before = distiller.losses[0].losses[0].decoupler[0].weight.clone()
        distiller.train_step(batch(), wrapper)
        assert not torch.equal(before, distiller.losses[0].losses[0].decoupler[0].weight)

    def test_building_leaves_no_trace(self):
        """Each loss runs once, which must not change its BatchNorm statistics or its bank."""
        rsd = dict(loss=dict(type='RSDLoss'), student='feature', teacher='feature', name='rsd')
        distiller = build(mldr(losses=[rsd, crd()]))
        assert all(module.training for module in distiller.losses.modules())
        assert distiller.losses[0].losses[0].decoupler[1].num_batches_tracked == 0
        assert not distiller.losses[1].losses[0].normalizers.any()


def test_a_stage_of_the_teacher():
    """A loss on features gets both tensors in one layout: tokens, with the class token first."""
    losses = [
        dict(
            loss=dict(type='PixelReconstructionLoss', criterion='L1'),
            student='stage4',
            teacher='stage4',
            name='tokens',
        )
    ]
    distiller = build(mldr(teacher=vit(), student=vit(), neck=None, losses=losses))
    assert list(distiller.teacher.recorder.taps) == list(STAGES)
    assert losses_of(distiller)['loss_tokens_stage4'] > 0


class TestBadInput:
    def test_missing_teacher_checkpoint(self):
        with pytest.raises(
            FileNotFoundError, match=r"teacher_checkpoint='no\.pth'.*configs/teachers"
        ):
            MODELS.build(mldr(teacher_checkpoint='no.pth'))

    def test_other_class_count(self):
        with pytest.raises(ConfigError, match='num_classes: the teacher has 7, the student 10'):
            MODELS.build(mldr(teacher=vit(num_classes=7)))

    @pytest.mark.parametrize('side', ['student', 'teacher'])
    def test_unknown_name(self, side):
        config = mldr()
        config['losses'][0][side] = 'logit'
        with pytest.raises(ConfigError, match=f"{side}='logit': unknown tensor; available: logits"):
            MODELS.build(config)

    def test_stage_logits_without_neck(self):
        with pytest.raises(ConfigError, match="neck=dict.type='MSDFNeck'"):
            MODELS.build(mldr(neck=None))

    def test_neck_of_a_tap_that_is_no_feature(self):
        with pytest.raises(ConfigError, match=r'taps: x of .* has shape \(1, 10\): must be a map'):
            MODELS.build(mldr(student_recorder=dict(type='FeatureRecorder', taps=dict(x='head'))))

    def test_stages_that_the_neck_was_not_made_for(self):
        """The error occurs when the model is built, not at the first batch."""
        with pytest.raises(
            ConfigError, match=r'grids=\(None, None, None, None\): .* \(1, 17, 32\)'
        ):
            MODELS.build(mldr(student=vit(), neck=dict(type='MSDFNeck', grids=[None] * 4)))

    def test_stage_without_a_grid(self):
        taps = dict(stage1='backbone.layer1', stage2='backbone.layer2', stage3='neck')
        with pytest.raises(
            ConfigError, match=r'stage3 of ImageClassifier.* has shape \(1, 64\): must be'
        ):
            MODELS.build(mldr(student_recorder=dict(type='FeatureRecorder', taps=taps)))

    def test_unknown_tap(self):
        taps = {'stage1': 'backbone.layr1'}
        with pytest.raises(ConfigError, match="stage1='backbone.layr1'.*backbone.layer1"):
            MODELS.build(mldr(student_recorder=dict(type='FeatureRecorder', taps=taps)))

    @pytest.mark.parametrize('label', [-1, NUM_CLASSES])
    def test_label_out_of_range(self, label):
        distiller = build(mldr())
        data = batch()
        data['data_samples'][3].set_gt_label(label)
        optimizer = torch.optim.SGD(distiller.parameters(), lr=0.1)
        with pytest.raises(ConfigError, match=rf'gt_label=\[{label}\]: must be within 0\.\.9'):
            distiller.train_step(data, OptimWrapper(optimizer))

    def test_teacher_logits_not_finite(self):
        distiller = build(mldr())
        torch.nn.init.constant_(distiller.teacher.model.head.layers.head.bias, float('nan'))
        with pytest.raises(
            ConfigError, match='teacher logits: 8 of 8 samples are not finite; check'
        ):
            losses_of(distiller)

    def test_batch_of_one(self):
        with pytest.raises(ConfigError, match='batch_size=1: .*drop_last=True'):
            losses_of(build(mldr(student=timm_resnet())), batch(1))

    @pytest.mark.parametrize('weight', [-1, [1, 2], [1, 2, -3], float('nan')])
    def test_weight(self, weight):
        config = mldr()
        config['losses'][0]['weight'] = weight
        with pytest.raises(ConfigError, match='losses: dfra: weight='):
            MODELS.build(config)

    def test_name_twice(self):
        config = mldr()
        config['losses'] *= 2
        with pytest.raises(ConfigError, match="name='dfra': names must be unique"):
            MODELS.build(config)

    @pytest.mark.parametrize(('side', 'width'), [('student', 64), ('teacher', 32)])
    def test_feature_where_logits_are_needed(self, side, width):
        config = mldr()
        config['losses'][0] |= {'student': ['logits'], side: 'feature'}
        with pytest.raises(
            ConfigError,
            match=rf"^losses: dfra: {side}='feature': has shape \(1, {width}\); must be logits of "
            '10 classes for DFRALoss$',
        ):
            MODELS.build(config)

    @pytest.mark.parametrize('losses', [['KDLoss'], [dict(type='KDLoss')], [dict(loss='KDLoss')]])
    def test_entry_without_a_loss(self, losses):
        with pytest.raises(ConfigError, match=r'^losses: .*must have loss=dict\(type=\.\.\.\)'):
            MODELS.build(mldr(losses=losses))

    def test_what_a_loss_says_has_its_name(self):
        loss = dict(loss=dict(type='KDLoss', temperature=0), name='mine')
        with pytest.raises(
            ConfigError, match='^losses: mine: temperature=0: must be a positive number'
        ):
            MODELS.build(mldr(losses=[loss]))
        loss = dict(loss=dict(type='CCLoss'), student='stage4', teacher='feature', name='mine')
        with pytest.raises(ConfigError, match=r'^losses: mine: features: student \(1, 64, 4, 4\)'):
            MODELS.build(mldr(losses=[loss]))

    def test_number_of_teachers_names(self):
        loss = dict(loss=dict(type='FitNetLoss'), student=['stage1', 'stage2'], teacher=['stage1'])
        with pytest.raises(
            ConfigError, match=r"kd: teacher=\['stage1'\]: must be one name, or a list"
        ):
            MODELS.build(mldr(losses=[loss]))

    @pytest.mark.parametrize(
        ('wrong', 'message'),
        [
            (
                dict(optimizer=1),
                "Distiller: got an unexpected keyword argument 'optimizer'; it takes",
            ),
            (dict(teacher='vit'), "teacher='vit': must be a dict with a type"),
            (dict(student=dict(depth=18)), "student={'depth': 18}: must be a dict with a type"),
            (dict(student=dict(type='Nobody')), 'student: Nobody is not in the'),
            (dict(student=dict(type='KDLoss')), 'student: KDLoss.__init__() got an'),
            (dict(neck=dict(type='MSDFNeck', x=1)), 'neck: MSDFNeck.__init__() got an'),
            (dict(neck={}), 'neck={}: must be a dict with a type'),
            (dict(losses=None), 'losses=None: must be a list of dicts'),
            (dict(teacher_checkpoint=3), 'teacher_checkpoint=3: must be a path or URL'),
            (dict(teacher_precision=['fp16']), "teacher_precision=['fp16']: must be one of fp32,"),
            (dict(teacher_compile='no'), "teacher_compile='no': must be True, False or a dict"),
            (dict(teacher_compile=dict(mod=1)), 'teacher_compile: '),
            (dict(input_size=32), 'input_size=32: must be 3 positive integers'),
            (dict(input_size=(3, 0, 32)), 'input_size=(3, 0, 32): must be 3 positive integers'),
            (dict(teacher_input_size=[8, 8]), 'teacher_input_size=[8, 8]: must be 3 positive'),
            (dict(data_preprocessor=[1]), 'data_preprocessor=[1]: must be a dict'),
            (dict(data_preprocessor=dict(mean=['x'], std=[1])), 'student: too many'),
            (
                dict(student_recorder=dict(type='KDLoss')),
                "student_recorder={'type': 'KDLoss'}: must be the config of a FeatureRecorder",
            ),
        ],
        ids=str,
    )
    def test_argument(self, wrong, message):
        with pytest.raises(ConfigError) as caught:
            MODELS.build(mldr(**wrong))
        assert str(caught.value).startswith(message)

    @pytest.mark.parametrize(
        ('wrong', 'message'),
        [
            (
                dict(wieght=1),
                "LossEntry: got an unexpected keyword argument 'wieght'; it takes loss,",
            ),
            (dict(name=3), 'losses: name=3: must be a non-empty string'),
            (dict(loss={}), 'losses: dfra: loss={}: must be a dict with a type'),
            (dict(loss=dict(type='Nobody')), 'losses: dfra: loss: Nobody is not in the'),
            (
                dict(loss=dict(type='KDLoss', x=None)),
                'losses: dfra: loss: KDLoss.__init__',
            ),
            (dict(student=[]), 'losses: dfra: student=[]: must be a name or a list of names'),
            (dict(teacher=[0]), 'losses: dfra: teacher=[0]: must be a name or a list of names'),
            (
                dict(student=['logits'] * 2),
                "losses: dfra: student=['logits', 'logits']: names must",
            ),
            (dict(weight='1'), "losses: dfra: weight='1': must be a non-negative number"),
            (dict(weight=True), 'losses: dfra: weight=True: must be a non-negative number'),
            (
                dict(weight=[1, None, 1]),
                'losses: dfra: weight=[1, None, 1]: must be a non-negative number',
            ),
        ],
        ids=str,
    )
    def test_argument_of_a_loss(self, wrong, message):
        config = mldr()
        config['losses'][0] |= wrong
        with pytest.raises(ConfigError) as caught:
            MODELS.build(config)
        assert str(caught.value).startswith(message)

    def test_bank_smaller_than_the_training_set(self):
        distiller = build(mldr(losses=[crd(num_samples=5)]))
        with pytest.raises(
            ConfigError,
            match='num_samples=5: must be the size of the training set; a sample has index 5',
        ):
            losses_of(distiller, numbered(batch()))

    def test_samples_without_a_number(self):
        with pytest.raises(ConfigError, match="PackInputs: meta_keys: must have 'sample_idx'"):
            losses_of(build(mldr(losses=[crd()])))


def test_shared_preprocessor_goes_behind_the_models_own():
    own = dict(mean=[1.0] * 3, std=[2.0] * 3)
    distiller = build(mldr(student=resnet(data_preprocessor=own)))
    assert_close(distiller.data_preprocessor.mean.flatten(), torch.ones(3))
    assert distiller.data_preprocessor.num_classes == NUM_CLASSES
    assert_close(
        distiller.teacher.model.data_preprocessor.mean.flatten(),
        torch.tensor(NORMALIZATION['mean']),
    )

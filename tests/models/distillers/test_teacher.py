"""The teacher: complete weights, frozen, and outside the student's module tree."""

from __future__ import annotations

import copy
import importlib
import logging
from argparse import Namespace

import pytest
import timm
import torch
import torch.nn.functional as F
from helpers import NUM_CLASSES, batch, mldr, resnet, timm_resnet, vit
from mmengine.logging import MMLogger
from safetensors.torch import save_file
from timm.models import load_checkpoint, swin_transformer
from timm.scheduler import CosineLRScheduler
from timm.utils import CheckpointSaver, ModelEmaV3, NativeScaler
from torch.testing import assert_close
from torch.utils._python_dispatch import TorchDispatchMode
from zoo import FAMILIES

from mldr_kd_mm import ConfigError, FeatureRecorder
from mldr_kd_mm.models.distillers.teacher import Teacher
from mldr_kd_mm.models.weights import load_weights
from mldr_kd_mm.registry import MODELS
from mldr_kd_mm.utils.device import float32_products

FIELD = 'teacher_checkpoint'
CONFIGS = dict(mmpretrain=resnet, vit=vit, timm=timm_resnet)


def teach(config, checkpoint=None, taps=None, size=None) -> Teacher:
    return Teacher(config, checkpoint, FeatureRecorder({} if taps is None else taps), size)


def weights_of(config, seed=1) -> dict[str, torch.Tensor]:
    """Return weights of a model, each different from those of a new model."""
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
        # BatchNorms load without their counters.
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
        assert message.startswith(
            f'{FIELD}={path!r}: its head has 7 classes, the model {NUM_CLASSES}; '
        )

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


# Small models for 32 px of the families of the authors' teachers.
TIMM = dict(
    resnet=dict(model_name='resnet10t'),
    vit=dict(
        model_name='vit_small_patch16_224',
        img_size=32,
        patch_size=8,
        embed_dim=32,
        depth=4,
        num_heads=2,
    ),
    swin=dict(
        model_name='swin_tiny_patch4_window7_224',
        img_size=32,
        patch_size=2,
        window_size=4,
        embed_dim=8,
        depths=(2, 2, 2, 2),
        num_heads=(1, 1, 2, 2),
    ),
    mixer=dict(model_name='mixer_s32_224', img_size=32),  # timm has no argument to make it smaller
)


def timm_config(family, **kwargs) -> dict:
    return dict(type='TimmClassifier', num_classes=NUM_CLASSES) | TIMM[family] | kwargs


def timm_model(family, seed=0, **kwargs) -> torch.nn.Module:
    torch.manual_seed(seed)
    model = timm.create_model(**(dict(num_classes=NUM_CLASSES) | TIMM[family] | kwargs)).eval()
    # timm starts some heads and position embeddings at zero.
    for parameter in model.parameters():
        parameter.data += 0.05 * torch.randn_like(parameter)
    return model


def of_timm_0_6(swin: torch.nn.Module) -> dict[str, torch.Tensor]:
    """Rename a Swin's weights as timm before 0.8, which merged patches at the end of a stage."""
    weights = {}
    for name, value in swin.state_dict().items():
        if '.downsample.' in name:
            _, stage, rest = name.split('.', 2)
            name = f'layers.{int(stage) - 1}.{rest}'
        weights[name.replace('head.fc.', 'head.')] = value
    for block in ('layers.0.blocks.0', 'layers.0.blocks.1'):
        weights[f'{block}.attn.relative_position_index'] = torch.zeros(16, 16, dtype=torch.int64)
    weights['layers.0.blocks.1.attn_mask'] = torch.zeros(4, 16, 16)
    return weights


class TestTimmFiles:
    """Files of timm and of trainers that save timm's models."""

    @pytest.mark.parametrize(
        ('family', 'name'),
        zip(
            TIMM,
            ['teacher.pth', 'teacher.safetensors', 'teacher.pth.tar', 'teacher.pth'],
            strict=True,
        ),
    )
    def test_the_authors_teachers(self, family, name, tmp_path):
        plain, path = timm_model(family), tmp_path / name
        if name.endswith('.safetensors'):
            save_file(plain.state_dict(), path)
        else:
            torch.save({'model': plain.state_dict()} if 'tar' in name else plain.state_dict(), path)
        teacher = teach(timm_config(family), str(path))
        same_layout = dict(memory_format=teacher.memory_format)
        expected = plain.to(**same_layout)(images().contiguous(**same_layout))
        assert_close(teacher(images())['logits'], expected, rtol=0, atol=0)

    @pytest.mark.parametrize('ema', [True, False])
    def test_what_timms_trainer_wrote(self, tmp_path, ema):
        """OFA-KD uses timm's trainer, too; if there is an EMA, it is read."""
        model, average = timm_model('vit', seed=1), ModelEmaV3(timm_model('vit', seed=2))
        args = Namespace(model='vit', output=tmp_path, device=torch.device('cpu'), lr=0.1)
        optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
        CheckpointSaver(
            model,
            optimizer,
            args,
            model_ema=average if ema else None,
            amp_scaler=NativeScaler(),
            checkpoint_dir=str(tmp_path),
        ).save_checkpoint(epoch=3, metric=80.0)
        path, expected = str(tmp_path / 'model_best.pth.tar'), average.module if ema else model
        classifier = MODELS.build(timm_config('vit'))
        report = load_weights(classifier, path, FIELD)
        assert_close(classifier.eval()(images()), expected(images()), rtol=0, atol=0)
        count = len(expected.state_dict())
        assert str(report) == f'{count} weights matched, 0 missing, 0 unexpected' + (
            ", from 'state_dict_ema'" if ema else ''
        )

    def test_what_deits_and_vims_trainers_wrote(self, tmp_path):
        """Of two sets of weights, the one that these trainers evaluate is read."""
        plain, path = timm_model('vit'), str(tmp_path / 'vim_s.pth.tar')
        optimizer = torch.optim.AdamW(plain.parameters())
        content = dict(
            model=plain.state_dict(),
            optimizer=optimizer.state_dict(),
            lr_scheduler=CosineLRScheduler(optimizer, 10).state_dict(),
            epoch=299,
            model_ema=timm_model('vit', seed=2).state_dict(),
            scaler='none',
            args=Namespace(output_dir=tmp_path, device='cuda', opt_betas=None),
        )
        torch.save(content, path)
        classifier = MODELS.build(timm_config('vit'))
        report = load_weights(classifier, path, FIELD)
        assert_close(classifier.eval()(images()), plain(images()), rtol=0, atol=0)
        assert report.notes == ("from 'model'",)

    @pytest.mark.parametrize('ddp', [False, True])
    def test_of_a_wrapped_model(self, tmp_path, ddp):
        plain = timm_model('vit')
        wrapped = torch.compile(plain)
        wrapped = torch.nn.DataParallel(wrapped) if ddp else wrapped  # adds the same prefix as DDP
        assert next(iter(wrapped.state_dict())).startswith('module.' if ddp else '_orig_mod.')
        teacher = teach(timm_config('vit'), save(tmp_path, wrapped.state_dict()))
        assert_close(teacher(images())['logits'], plain(images()), rtol=0, atol=0)

    def test_of_an_older_timm(self, tmp_path):
        plain = timm_model('swin')
        path = save(tmp_path, of_timm_0_6(plain))
        classifier = MODELS.build(timm_config('swin'))
        report = load_weights(classifier, path, FIELD)
        assert_close(classifier.eval()(images()), plain(images()), rtol=0, atol=0)
        assert str(report).endswith('0 missing, 0 unexpected, converted by timm')

    @pytest.mark.parametrize('family', TIMM)
    def test_of_other_classes(self, family, tmp_path):
        path = save(tmp_path, timm_model(family, num_classes=7).state_dict())
        message = refuses(ConfigError, lambda: teach(timm_config(family), path))
        assert message == (
            f'{FIELD}={path!r}: its head has 7 classes, the model {NUM_CLASSES}; fine-tune it on '
            f'the {NUM_CLASSES} classes, or set num_classes=7 if the data set has as many'
        )

    def test_of_an_older_timm_and_other_classes(self, tmp_path):
        path = save(tmp_path, of_timm_0_6(timm_model('swin', num_classes=7)))
        message = refuses(ConfigError, lambda: teach(timm_config('swin'), path))
        assert f'its head has 7 classes, the model {NUM_CLASSES}; ' in message

    @pytest.mark.parametrize('family', ['vit', 'swin'])
    def test_of_another_image_size(self, family, tmp_path):
        """timm's own conversion is the reference."""
        sizes = dict(vit=dict(img_size=48), swin=dict(img_size=64, window_size=8))[family]
        path = save(tmp_path, timm_model(family).state_dict())
        expected = timm_model(family, seed=1, **sizes)
        convert = importlib.import_module(type(expected).__module__).checkpoint_filter_fn
        load_checkpoint(expected, path, filter_fn=convert)
        classifier = MODELS.build(timm_config(family, **sizes))
        report = load_weights(classifier, path, FIELD)
        inputs = images(pixels=sizes['img_size'])
        assert_close(classifier.eval()(inputs), expected(inputs), rtol=0, atol=0)
        assert report.notes == ('converted by timm',)

    def test_that_fit_are_not_converted(self, tmp_path, monkeypatch):
        monkeypatch.setattr(swin_transformer, 'checkpoint_filter_fn', None)
        teach(timm_config('swin'), save(tmp_path, timm_model('swin').state_dict()))

    @pytest.mark.parametrize(
        'weights',
        [
            {'absent.relative_position_bias_table': torch.ones(1, 1)},
            {'patch_embed.proj.weight': torch.ones(3)},
            {'layers.0.downsample.reduction.weight': torch.ones(1)},
            {'evil\n\x1b[2J': torch.ones(1)},
        ],
    )
    def test_that_timm_cannot_convert_either(self, weights, tmp_path):
        path = save(tmp_path, weights)
        message = refuses(ConfigError, lambda: teach(timm_config('swin'), path))
        assert message.startswith(f'{FIELD}={path!r}: ')
        assert message.isprintable()
        assert 'missing' in message or 'size mismatch' in message

    def test_of_another_family(self, tmp_path):
        path = save(tmp_path, timm_model('mixer').state_dict())
        message = refuses(ConfigError, lambda: teach(timm_config('vit'), path))
        assert 'missing ' in message or 'size mismatch' in message
        assert 'its head has' not in message

    def test_for_a_model_without_a_head(self, tmp_path):
        path = save(tmp_path, timm_model('vit', num_classes=0, embed_dim=16).state_dict())
        message = refuses(ConfigError, lambda: teach(timm_config('vit', num_classes=0), path))
        assert 'size mismatch' in message


@pytest.mark.parametrize('content', [torch.ones(5), torch.ones(1, 7, 32), torch.ones(1, 1, 1, 1)])
def test_hooks_of_mmpretrain_that_fail(content, tmp_path):
    """The hooks resize position embeddings and may raise any exception."""
    path = save(tmp_path, weights_of(vit()) | {'backbone.pos_embed': content})
    message = refuses(ConfigError, lambda: teach(vit(), path))
    assert message.startswith(f'{FIELD}={path!r}: ')
    assert not message.endswith(': ')


@pytest.mark.parametrize('config', [resnet, timm_resnet])
class TestPrefix:
    """Weights under any one prefix are found; names in messages are those in the file."""

    @pytest.mark.parametrize('prefix', ['model.', 'net.', 'model.net.', 'backbone.', 'a.b.c.'])
    def test_is_found(self, config, prefix, tmp_path):
        weights = weights_of(config())
        content = {prefix + name: value for name, value in weights.items()}
        content |= {'criterion.weight': torch.ones(3)}
        classifier = MODELS.build(config())
        report = load_weights(classifier, save(tmp_path, content), FIELD)
        assert_close(dict(classifier.state_dict()), weights, rtol=0, atol=0)
        assert str(report) == (
            f'{len(weights)} weights matched, 0 missing, 1 unexpected, under the prefix {prefix!r}'
        )
        assert report.unexpected == ['criterion.weight']

    def test_names_are_those_of_the_file(self, config, tmp_path):
        content = {f'net.{name}': value for name, value in weights_of(config()).items()}
        lost = next(reversed(content))
        del content[lost]
        content['net.more.weight'] = torch.ones(1)
        path = save(tmp_path, content)
        message = refuses(ConfigError, lambda: teach(config(), path))
        assert message.endswith(f'; missing {lost}; unexpected net.more.weight')

    def test_several_copies(self, config, tmp_path):
        weights = weights_of(config())
        content = {f'{copy}.{name}': v for name, v in weights.items() for copy in ('a', 'b')}
        path = save(tmp_path, content)
        message = refuses(ConfigError, lambda: teach(config(), path))
        assert f'{FIELD}={path!r}: has the model several times, under a., b.; ' in message


@pytest.mark.parametrize('student', [resnet, timm_resnet])
def test_weights_of_a_distilled_student(student, tmp_path):
    distiller = MODELS.build(mldr(student=student()))
    weights = weights_of(student())
    distiller.student.load_state_dict(weights)
    path = save(tmp_path, distiller.state_dict())
    classifier = MODELS.build(student())
    report = load_weights(classifier, path, FIELD)
    assert_close(dict(classifier.state_dict()), weights, rtol=0, atol=0)
    assert report.notes == ('of the student of a distillation run',)


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
    assert not teacher.model.head.layers.head.weight.any()  # initialised by mmpretrain


class TestFrozen:
    @pytest.fixture
    def distiller(self):
        """Return a Distiller whose teacher would give random outputs in training mode."""
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
        assert message == "unknown tensor 'stage1'; available: logits, feature"

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
    teacher = teach(config())
    *_, bias = teacher.model.parameters()
    bias.data[0] = value
    inputs = images()
    inputs[1, 0] = inputs[3] = value  # which is not the teacher's fault
    message = refuses(ConfigError, lambda: teacher(inputs))
    assert message.startswith('teacher logits: 2 of 4 samples are not finite')


@pytest.mark.parametrize('value', [float('nan'), float('inf'), -float('inf')])
def test_images_that_are_not_finite_are_not_its_fault(value):
    inputs = images()
    inputs[1, 0] = value
    logits = teach(resnet())(inputs)['logits']
    assert not logits[1].isfinite().all()
    assert logits[[0, 2, 3]].isfinite().all()


def test_vision_mamba_as_its_authors_save_it(tmp_path):
    """The weights are under ``model``, beside an EMA, an optimizer and the command line."""
    config = dict(
        type='VisionMamba', img_size=32, patch_size=8, embed_dim=16, depth=2, num_classes=10
    )
    weights = MODELS.build(config).state_dict()
    file = tmp_path / 'vim.pth.tar'
    average = {name: torch.zeros_like(value) for name, value in weights.items()}
    torch.save(dict(model=weights, model_ema=average, epoch=3, args=Namespace(lr=1e-5)), file)
    teacher = Teacher(config, str(file), FeatureRecorder())
    assert_close(teacher.model.state_dict(), weights, rtol=0, atol=0)


class Conversions(TorchDispatchMode):
    """Records the ids of the tensors that are converted to another dtype."""

    def __init__(self):
        super().__init__()
        self.ids = set()

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        if function is torch.ops.aten._to_copy.default:
            self.ids.add(id(args[0]))
        return function(*args, **(kwargs or {}))


class TestCost:
    """Work that the teacher's forward pass avoids."""

    def test_logits_take_no_hooks(self, monkeypatch):
        attached = []
        monkeypatch.setattr(
            'mldr_kd_mm.models.taps.recorder._attach', lambda *args: attached.append(args)
        )
        teach(resnet(), taps='stages')(images())
        assert not attached

    @pytest.mark.parametrize('names', [['logits'], ['logits', 'feature']])
    def test_its_outputs_can_be_kept_for_a_backward_pass(self, names):
        record = teach(resnet())(images(), names)
        for value in record.values():
            weight = torch.ones(value.shape[1:], requires_grad=True)
            (weight * value).sum().backward()
            assert_close(weight.grad, value.sum(0))

    @pytest.mark.parametrize(
        ('config', 'layout'), [(resnet(), torch.channels_last), (vit(), torch.contiguous_format)]
    )
    def test_convolutions_have_their_layout(self, config, layout):
        teacher = teach(config)
        weights = [p for p in teacher.model.parameters() if p.dim() == 4 and p.shape[2] > 1]
        assert weights
        assert all(weight.is_contiguous(memory_format=layout) for weight in weights)
        expected = copy.deepcopy(teacher.model).to(memory_format=torch.contiguous_format)
        assert_close(teacher(images())['logits'], expected(images()), atol=1e-5, rtol=1e-5)

    def test_half_precision(self):
        torch.manual_seed(0)
        exact = teach(resnet())
        half = Teacher(resnet(), None, FeatureRecorder({}), precision='bf16')
        half.model.load_state_dict(exact.model.state_dict())
        names = ['logits', 'feature']
        expected, record = exact(images(), names), half(images(), names)
        for name in names:
            assert record[name].dtype == torch.float32
            assert not torch.equal(record[name], expected[name])
            assert_close(record[name], expected[name], rtol=0.05, atol=0.05)

    @pytest.mark.parametrize('family', FAMILIES)
    def test_half_precision_weights_are_converted_once(self, family):
        """The outputs are exactly those of autocast, which converts them in each call."""
        teacher = Teacher(FAMILIES[family], None, FeatureRecorder({}), precision='bf16')
        pixels = images(pixels=teacher.size[0] if teacher.size else 64)
        with torch.no_grad(), torch.autocast('cpu', torch.bfloat16):
            expected = teacher.model(pixels, mode='tensor').float()
        found = teacher(pixels, ['logits', 'feature'])
        assert torch.equal(found['logits'], expected)
        assert all(weight.dtype != torch.bfloat16 for weight in teacher.model.parameters())
        kinds = (torch.nn.Linear, torch.nn.Conv2d)
        cast = [m.weight for m in teacher.model.modules() if isinstance(m, kinds)]
        with Conversions() as conversions:
            teacher(pixels)
        # Vision Mamba's scan reads the bias of a linear layer in float32, so it is left alone.
        assert family == 'Mamba' or not {id(weight) for weight in cast} & conversions.ids
        # Other weights follow, too.
        with torch.no_grad():
            for weight in teacher.model.parameters():
                weight.mul_(0.5)
            with torch.autocast('cpu', torch.bfloat16):
                expected = teacher.model(pixels, mode='tensor').float()
        assert torch.equal(teacher(pixels)['logits'], expected)

    @pytest.mark.parametrize(('precision', 'expected'), [(None, 'high'), ('fp32', 'highest')])
    def test_tf32(self, precision, expected):
        """On a GPU that has it, unless the config asks for another precision."""
        teacher = Teacher(resnet(), None, FeatureRecorder({}), precision=precision)
        with teacher._in_precision(torch.device('cuda')):
            assert torch.get_float32_matmul_precision() == expected
            with float32_products(torch.device('cuda'), 'highest'):
                assert torch.get_float32_matmul_precision() == 'highest'
            assert torch.get_float32_matmul_precision() == expected
        assert torch.get_float32_matmul_precision() == 'highest'
        with teacher._in_precision(torch.device('cpu')):
            assert torch.get_float32_matmul_precision() == 'highest'

    def test_tf32_set_by_the_newer_functions_of_torch(self, monkeypatch):
        def fails():
            raise RuntimeError('mix of the legacy and new APIs')

        monkeypatch.setattr(torch, 'get_float32_matmul_precision', fails)
        with float32_products(torch.device('cuda'), 'highest'):
            pass

    def test_fp32_stays_fp32_beside_a_student_under_autocast(self):
        teacher = teach(resnet())
        expected = teacher(images())['logits']
        own = Teacher(resnet(), None, FeatureRecorder({}), precision='fp32')
        own.model.load_state_dict(teacher.model.state_dict())
        with torch.autocast('cpu', torch.bfloat16):
            assert teacher(images())['logits'].dtype == torch.bfloat16
            assert torch.equal(own(images())['logits'], expected)

    def test_unknown_precision(self):
        message = refuses(ConfigError, lambda: Teacher(resnet(), None, None, precision='int8'))
        assert message.startswith("teacher_precision='int8': must be one of fp32, bf16, fp16")

    def test_compiled(self):
        teacher = teach(resnet())
        expected = teacher(images())['logits']
        teacher.compile(['logits'], backend='eager', fullgraph=True)
        assert_close(teacher(images())['logits'], expected)

    def test_compiled_it_has_no_taps(self):
        message = refuses(ConfigError, lambda: teach(resnet()).compile(['logits', 'feature']))
        assert message.startswith(
            'teacher_compile: must be False; the losses read feature of the teacher'
        )


def test_options_of_the_distiller():
    config = mldr(teacher_precision='bf16', teacher_compile=dict(backend='eager'))
    model = MODELS.build(config)
    assert model.teacher.precision == 'bf16'
    losses = model(**model.data_preprocessor(batch(), True), mode='loss')
    sum(value for name, value in losses.items() if 'loss' in name).backward()
    assert all(value.isfinite() for value in losses.values())

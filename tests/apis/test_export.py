"""Exported files and model cards, read back as a user would."""

import ast
import json
import math
import re
import subprocess
import sys
from html import escape
from pathlib import Path

import onnx
import onnxruntime
import pytest
import torch
from helpers import resnet, timm_resnet, vit
from mmengine.config import Config
from mmpretrain.models import BaseClassifier
from PIL import Image
from safetensors import safe_open
from saved_run import STATISTICS, of_the_run, save_run, set_classes, validation, write_image
from timm import create_model
from timm.data import create_transform, resolve_model_data_config
from torch import nn
from torch.testing import assert_close
from zoo import FAMILIES, image_classifier, timm

from mldr_kd_mm.apis import preprocessing
from mldr_kd_mm.apis.description import StudentDescription
from mldr_kd_mm.apis.export import ExportError, export_student
from mldr_kd_mm.apis.student import _input_size
from mldr_kd_mm.registry import MODELS
from mldr_kd_mm.utils.errors import ConfigError
from mldr_kd_mm.utils.stored_config import without_weights

MKDIR = dict(type='os.mkdir', path='CANARY')


class _Odd(BaseClassifier):
    def __init__(self, data_preprocessor):
        data_preprocessor.setdefault('type', 'ClsDataPreprocessor')
        super().__init__(data_preprocessor=data_preprocessor)
        self.fc = nn.Linear(3, 10)

    def extract_feat(self, inputs):
        return inputs.mean((2, 3))

    def loss(self, inputs, data_samples):
        raise NotImplementedError


@MODELS.register_module()
class AColour(_Odd):
    """A small classifier that can be exported."""

    def forward(self, inputs, data_samples=None, mode='tensor'):
        return self.fc(self.extract_feat(inputs))


@MODELS.register_module()
class OtherWhenExported(_Odd):
    """Computes other logits when it is exported."""

    def forward(self, inputs, data_samples=None, mode='tensor'):
        return self.fc(self.extract_feat(inputs)) + torch.compiler.is_compiling()


@MODELS.register_module()
class Overflows(_Odd):
    """Has finite weights and infinite logits."""

    def forward(self, inputs, data_samples=None, mode='tensor'):
        return self.fc(self.extract_feat(inputs)) * 1e30 * 1e30


@MODELS.register_module()
class LooksAtTheImages(_Odd):
    """Cannot be exported, because its code branches on the logits."""

    def forward(self, inputs, data_samples=None, mode='tensor'):
        logits = self.fc(self.extract_feat(inputs))
        return logits if logits.sum() > 0 else -logits


@torch.no_grad()
def student_logits(distiller, images):
    logits = distiller.student(images, mode='tensor')
    spread = logits.std(0, unbiased=False).max()
    assert len(images) == 1 or spread > 1e-2, 'the logits must depend on the images'
    return logits


STUDENTS = {
    'ResNet': (resnet(), 32),
    'ViT': (vit(), 32),
    'timm ResNet': (timm_resnet(), 32),
    'timm ViT': (
        timm('vit_tiny_patch16_224', img_size=32, depth=2, embed_dim=32, num_heads=2),
        32,
    ),
    'Vision Mamba': (FAMILIES['Mamba'] | dict(depth=1), 32),
    'timm Mixer': (timm('mixer_s32_224', img_size=64), 64),
    'MobileNetV2': (image_classifier(1280, type='MobileNetV2_CIFAR', widen_factor=0.25), 32),
    'timm Swin': (
        timm(
            'swin_tiny_patch4_window7_224',
            img_size=64,
            window_size=4,
            embed_dim=24,
            depths=(1, 2, 1, 1),
            num_heads=(1, 2, 4, 8),
        ),
        64,
    ),
}
# One of each kind of model: of mmpretrain, of timm, and ours.
FAST_STUDENTS = ('ResNet', 'timm ViT', 'Vision Mamba')


class TestGraphs:
    @pytest.mark.parametrize(
        'name',
        [
            pytest.param(name, marks=() if name in FAST_STUDENTS else pytest.mark.slow)
            for name in STUDENTS
        ],
    )
    def test_same_logits_for_any_batch(self, name, tmp_path):
        student, pixels = STUDENTS[name]
        checkpoint, distiller = save_run(tmp_path, student, pixels)
        out = tmp_path / 'out' / 'student.pth'
        exported = export_student(checkpoint, str(out), onnx=True, torch_export=True)
        assert not exported.notes

        session = onnxruntime.InferenceSession(out.with_suffix('.onnx'))
        assert session.get_inputs()[0].shape == ['batch', 3, pixels, pixels]
        assert session.get_outputs()[0].shape == ['batch', 10]
        graph = torch.export.load(out.with_suffix('.pt2')).module()
        for batch in (1, 2, 5):
            images = torch.randn(batch, 3, pixels, pixels)
            expected = student_logits(distiller, images)
            of_onnx = session.run(['logits'], {'images': images.numpy()})[0]
            assert_close(torch.from_numpy(of_onnx), expected, atol=1e-4, rtol=0)
            assert_close(graph(images), expected, atol=1e-4, rtol=0)

    def test_batch_that_the_code_fixes(self, tmp_path):
        """mmpretrain's Swin computes the batch size with int()."""
        backbone = dict(
            type='SwinTransformer',
            arch=dict(embed_dims=8, depths=[1, 1, 1, 1], num_heads=[1, 1, 2, 2]),
            img_size=64,
            window_size=2,
        )
        checkpoint, distiller = save_run(tmp_path, image_classifier(64, **backbone), 64)
        out = tmp_path / 'student.pth'
        exported = export_student(checkpoint, str(out), torch_export=True)
        assert exported.notes == (
            "the graph's batch size is 1, because the student's code fixes it",
        )
        images = torch.randn(1, 3, 64, 64)
        logits = torch.export.load(out.with_suffix('.pt2')).module()(images)
        assert_close(logits, student_logits(distiller, images), atol=1e-4, rtol=0)

    def test_says_what_the_images_must_be(self, tmp_path):
        normalisation = dict(mean=[1.0, 2.0, 3.0], std=[4.0, 5.0, 6.0], to_rgb=True)
        student = dict(type='AColour', data_preprocessor=normalisation)
        pipeline = [dict(type='LoadImageFromFile'), dict(type='Resize', scale=32)]
        val = dict(dataset=dict(type='CustomDataset', data_root='/home/me', pipeline=pipeline))
        checkpoint, _ = save_run(tmp_path, student, val_dataloader=val)
        out = tmp_path / 'student.pth'
        set_classes(checkpoint, *'abcdefghij')
        export_student(checkpoint, str(out), onnx=True, torch_export=True)
        export_student(checkpoint, str(tmp_path / 'b.safetensors'))
        properties = onnx.load(out.with_suffix('.onnx')).metadata_props
        texts = {entry.key: entry.value for entry in properties}
        assert {key: json.loads(text) for key, text in texts.items()} == dict(
            model=student | dict(data_preprocessor=normalisation | dict(num_classes=10)),
            default_scope='mldr_kd_mm',
            input_size=[3, 32, 32],
            channel_order='RGB',
            mean=[1, 2, 3],
            std=[4, 5, 6],
            pipeline=pipeline,
            resize=dict(
                scale=[32, 32],
                crop_mode='squash',
                crop_pct=1,
                interpolation='bilinear',
                backend='cv2',
            ),
            classes=[*'abcdefghij'],
            input='normalised',
            output='logits',
        )
        assert torch.load(out)['meta']['student'] == texts
        with safe_open(tmp_path / 'b.safetensors', 'pt') as file:
            assert file.metadata() == {'format': 'pt'} | texts
        beside = {'metadata.json': ''}
        torch.export.load(out.with_suffix('.pt2'), extra_files=beside)
        assert json.loads(beside['metadata.json']) == texts

    @pytest.mark.parametrize(
        ('kind', 'message'),
        [
            (
                'OtherWhenExported',
                r'differs from the student by 1\.0e\+00, more than \S+e-04',
            ),
            ('LooksAtTheImages', 'the student cannot be exported: '),
        ],
    )
    def test_wrong_graph_is_not_written(self, kind, message, tmp_path):
        checkpoint, _ = save_run(tmp_path, dict(type=kind))
        with pytest.raises(ExportError, match=message) as raised:
            export_student(checkpoint, str(tmp_path / 'out/student.pth'), torch_export=True)
        assert '\n' not in str(raised.value)
        assert not list((tmp_path / 'out').iterdir())

    @pytest.mark.parametrize(
        ('kind', 'value', 'message'),
        [
            ('AColour', torch.nan, '1 of its tensors, such as fc.weight, are NaN or infinite'),
            ('AColour', -torch.inf, '1 of its tensors, such as fc.weight, are NaN or infinite'),
            ('Overflows', 1.0, 'its logits are NaN or infinite, as training has diverged'),
        ],
    )
    def test_a_diverged_student_is_not_written(self, kind, value, message, tmp_path):
        checkpoint, _ = save_run(tmp_path, dict(type=kind))
        content = torch.load(checkpoint, weights_only=False)
        content['state_dict']['student.fc.weight'][0] = value
        torch.save(content, checkpoint)
        with pytest.raises(ExportError, match=message):
            export_student(checkpoint, str(tmp_path / 'out/student.pth'))
        assert not (tmp_path / 'out').exists()

    def test_large_logits_are_compared_by_their_size(self, tmp_path):
        """Logits in the thousands have rounding errors above 1e-4 in float32."""
        checkpoint, _ = save_run(tmp_path, resnet())
        content = torch.load(checkpoint, weights_only=False)
        for name, tensor in content['state_dict'].items():
            if name.endswith('head.fc.weight'):
                tensor.mul_(1e5)
        torch.save(content, checkpoint)
        out = tmp_path / 'student.pth'
        export_student(checkpoint, str(out), onnx=True)
        session = onnxruntime.InferenceSession(out.with_suffix('.onnx'))
        (logits,) = session.run(None, {'images': torch.randn(2, 3, 32, 32).numpy()})
        assert abs(logits).max() > 1000

    @pytest.mark.parametrize('package', ['onnx', 'onnxscript', 'onnxruntime'])
    def test_says_what_to_install(self, package, tmp_path, monkeypatch):
        monkeypatch.setitem(sys.modules, package, None)
        wanted = f'needs {package}; run pip install onnx onnxscript onnxruntime'
        with pytest.raises(ConfigError, match=wanted):
            export_student('run.pth', str(tmp_path / 'student.pth'), onnx=True)


PIPELINES = {
    'center': [
        dict(type='ResizeEdge', scale=37, backend='pillow'),
        dict(type='CenterCrop', crop_size=32),
    ],
    'bicubic': [
        dict(type='mmpretrain.ResizeEdge', scale=50, backend='pillow', interpolation='bicubic'),
        dict(type='CenterCrop', crop_size=(32, 32)),
    ],
    'squash': [dict(type='Resize', scale=(32, 32), backend='pillow')],
    'not square': [dict(type='Resize', scale=(32, 64), backend='pillow')],
    'squash and crop': [
        dict(type='Resize', scale=40, backend='pillow'),
        dict(type='CenterCrop', crop_size=32),
    ],
}


class TestFolder:
    @pytest.mark.parametrize('name', PIPELINES)
    def test_timm_makes_the_same_logits(self, name, tmp_path, monkeypatch, capsys):
        config = validation(*PIPELINES[name])
        network = dict(model_name='test_resnet')
        if name == 'squash':  # timm stores the size of its position embedding, too
            network = dict(model_name='test_vit', img_size=32)
        student = timm(**network, data_preprocessor=STATISTICS)
        checkpoint, distiller = save_run(tmp_path, student, **config)
        set_classes(checkpoint, *'abcdefghij')
        assert not export_student(checkpoint, str(tmp_path / 'folder')).notes
        export_student(checkpoint, str(tmp_path / 'file.pth'))

        model = create_model(f'local-dir:{tmp_path / "folder"}', pretrained=True).eval()
        transform = create_transform(**resolve_model_data_config(model))
        for number, size in enumerate([(90, 61), (41, 200), (33, 33)]):
            path = write_image(tmp_path / f'{number}.png', *size)
            images, logits = of_the_run(distiller, config, path)
            ours = transform(Image.open(path))[None]
            assert_close(ours, images, atol=1e-5, rtol=0)
            with torch.no_grad():
                assert_close(model(ours), logits, atol=1e-4, rtol=1e-5)

        monkeypatch.chdir(tmp_path / 'folder')
        path = write_image(tmp_path / 'folder/image.jpg', 120, 77)
        images, logits = of_the_run(distiller, config, path)
        (code,) = re.findall('```python\n(.*?)```', Path('README.md').read_text(), re.DOTALL)
        fields = {}
        exec(code, fields)
        assert_close(fields['logits'], logits, atol=1e-4, rtol=1e-5)
        assert capsys.readouterr().out.splitlines()[-1] == 'abcdefghij'[logits.argmax()]
        exec(code_blocks(tmp_path / 'file.pth')[0], fields)
        assert_close(torch.from_numpy(fields['images']), images, atol=1e-4, rtol=0)

    def test_the_pipeline_decides_the_size(self, tmp_path):
        student = timm('test_resnet', data_preprocessor=STATISTICS)
        config = validation(*PIPELINES['center'])
        checkpoint, _ = save_run(tmp_path, student, pixels=64, **config)
        assert not export_student(checkpoint, str(tmp_path / 'folder')).notes
        stored = json.loads((tmp_path / 'folder/config.json').read_text())
        assert stored['pretrained_cfg']['input_size'] == [3, 32, 32]

    @pytest.mark.parametrize('student', [resnet(), FAMILIES['Mamba'] | dict(depth=1)])
    def test_mmpretrain_makes_the_same_logits(self, student, tmp_path, monkeypatch, capsys):
        # mmpretrain's pipelines with any resizing work, here OpenCV's.
        config = validation(dict(type='Resize', scale=32))
        student['data_preprocessor'] = STATISTICS
        checkpoint, distiller = save_run(tmp_path, student, **config)
        set_classes(checkpoint, *'abcdefghij')
        exported = export_student(checkpoint, str(tmp_path / 'folder'))
        assert [path.name for path in exported.files] == ['model.pth', 'config.py', 'README.md']
        assert not exported.notes
        assert 'images differ' not in (tmp_path / 'folder/README.md').read_text()
        monkeypatch.chdir(tmp_path / 'folder')
        path = write_image(tmp_path / 'folder/image.jpg', 90, 61)
        _, logits = of_the_run(distiller, config, path)
        (code,) = re.findall('```python\n(.*?)```', Path('README.md').read_text(), re.DOTALL)
        fields = {}
        exec(code, fields)
        scores = torch.from_numpy(fields['result']['pred_scores'])
        assert_close(scores, logits.softmax(1)[0], atol=1e-6, rtol=1e-4)
        assert fields['result']['pred_class'] == 'abcdefghij'[logits.argmax()]

    @pytest.mark.parametrize('kind', ['CIFAR100', 'ImageFolder'])
    @pytest.mark.parametrize('to_rgb', [True, False])
    def test_config_for_files_of_a_student_of_arrays(self, kind, to_rgb, tmp_path):
        """mmpretrain reads files as BGR, while CIFAR's arrays are RGB."""
        statistics = STATISTICS | dict(to_rgb=to_rgb)
        config = validation(dict(type='Resize', scale=32)) | dict(data_preprocessor=statistics)
        config['val_dataloader']['dataset']['type'] = kind
        checkpoint, _ = save_run(tmp_path, resnet(data_preprocessor=statistics), **config)
        export_student(checkpoint, str(tmp_path / 'folder'))
        written = Config.fromfile(tmp_path / 'folder/config.py').model.data_preprocessor
        assert written.to_rgb is (to_rgb is (kind == 'ImageFolder'))

    @pytest.mark.parametrize(
        ('steps', 'reason'),
        [
            ([dict(type='Resize', scale=32)], 'it resizes with OpenCV, here Pillow does'),
            ([dict(type='Rotate', angle=9)], 'its steps are LoadImageFromFile, Rotate, PackInputs'),
            ([dict(type='CenterCrop', crop_size='all')], 'its steps are LoadImageFromFile, Center'),
        ],
    )
    def test_says_if_timm_would_see_other_images(self, steps, reason, tmp_path):
        student = timm('test_resnet', data_preprocessor=STATISTICS)
        checkpoint, _ = save_run(tmp_path, student, **validation(*steps))
        (note,) = export_student(checkpoint, str(tmp_path / 'folder')).notes
        assert reason in note
        assert escape(reason) in (tmp_path / 'folder/README.md').read_text()

    def test_replaces_an_earlier_one_on_request_only(self, tmp_path):
        folder = tmp_path / 'folder'
        for kind in ('test_resnet', None):
            student = timm(kind) if kind else resnet()
            checkpoint, _ = save_run(tmp_path, student, **validation())
            export_student(checkpoint, str(folder), overwrite=True)
            (folder / 'model.onnx').touch()
        export_student(checkpoint, str(folder), overwrite=True)
        assert {path.name for path in folder.iterdir()} == {'model.pth', 'config.py', 'README.md'}
        with pytest.raises(ConfigError, match=r'model\.pth.: exists already'):
            export_student(checkpoint, str(folder))
        (tmp_path / 'file').touch()
        with pytest.raises(ConfigError, match='file.: exists already'):
            export_student(checkpoint, str(tmp_path / 'file'))

    def test_its_config_is_data(self, tmp_path):
        """The config in a checkpoint may come from anyone; what is written from it is executed."""
        checkpoint, _ = save_run(tmp_path, resnet())
        content = torch.load(checkpoint)
        key = "x': print('CANARY'), 'y"
        config = content['meta']['cfg']
        for number, step in enumerate(({'type': 'Resize', key: key}, {'type': 'os.system'})):
            loader = dict(dataset=dict(pipeline=[step]))
            content['meta']['cfg'] = f'{config}\nval_dataloader = {loader!r}'
            torch.save(content, checkpoint)
            export_student(checkpoint, str(tmp_path / f'{number}'))
            text = (tmp_path / f'{number}/config.py').read_text()
            values = {node.targets[0].id: node.value for node in ast.parse(text).body}
            for value in values.values():
                ast.literal_eval(value)
            assert ('test_dataloader' in values) == (number == 0)

    def test_a_graph_alone(self, tmp_path):
        checkpoint, _ = save_run(tmp_path, dict(type='AColour'))
        exported = export_student(checkpoint, str(tmp_path / 'student.onnx'))
        assert [path.name for path in exported.files] == ['student.onnx', 'student.md']


@pytest.mark.parametrize('size', [(32, 32), (224, 224), (97, 97), (1, 1), (384, 384)])
def test_timm_finds_the_scale(size):
    for scale in range(size[0], 3 * size[0] + 2):
        fraction = preprocessing._crop_fraction(size, (scale, scale))
        assert math.floor(size[0] / fraction) == scale
    assert preprocessing._crop_fraction((224, 224), (256, 256)) == 0.875


@pytest.mark.parametrize(
    ('training', 'validating', 'known', 'size'),
    [
        ([], [dict(type='CenterCrop', crop_size=(24, 16))], (3, 8, 8), (3, 16, 24)),
        ([dict(type='RandomCrop', crop_size=40)], [], (3, 8, 8), (3, 8, 8)),
        ([dict(type='RandomCrop', crop_size=40), dict(type='RandomFlip')], [], None, (3, 40, 40)),
        ([dict(type='RandomResizedCrop', scale=48)], [], None, (3, 48, 48)),
        ([], [], None, (3, 224, 224)),
    ],
)
def test_size_of_the_images(training, validating, known, size):
    """Its arrays have their size, so that a validation often has no step but PackInputs."""
    pipelines = dict(train_dataloader=training, val_dataloader=validating)
    run = {name: dict(dataset=dict(pipeline=steps)) for name, steps in pipelines.items()}
    assert _input_size(run, known) == size


def test_a_description_is_read_as_it_was_written():
    written = StudentDescription(
        *(dict(type='a'), 'b', [3, 4, 5], 'BGR', [1.0] * 3, [2.0] * 3),
        *([dict(type='CenterCrop', crop_size=(5, 4))], None, ['x', 'y']),
    )
    texts = written.to_metadata()
    assert StudentDescription.from_metadata(texts | dict(format='pt'), 'file') == written
    assert written.class_names(3) == ['x', 'y', '2'] and written.class_names(1) == ['x']
    for missing in (None, {}, {key: texts[key] for key in texts if key != 'model'}):
        with pytest.raises(ConfigError, match='file: does not describe .* mldr-kd export CHECK'):
            StudentDescription.from_metadata(missing, 'file')
    for name, text in [
        ('mean', '[1, 2]'),
        ('mean', '[1, 2, NaN]'),
        ('std', '[1, 2, 0]'),
        ('input_size', '"all"'),
        ('input_size', '{'),
        ('model', '3'),
        ('pipeline', '[3]'),
        ('classes', '"xy"'),
        ('classes', '[' * 100_000),
        ('output', '[]'),
    ]:
        with pytest.raises(ConfigError, match='file: its description is damaged; export it again'):
            StudentDescription.from_metadata(texts | {name: text}, 'file')


class TestUntrustedConfig:
    """The config in a checkpoint may come from anyone."""

    @pytest.mark.parametrize(
        'model',
        [
            dict(student=MKDIR),
            dict(student=dict(type='mmengine.dump', obj=[], file='CANARY.json')),
            dict(student=dict(type='ImageClassifier', backbone=MKDIR)),
            dict(student=resnet(data_preprocessor=MKDIR)),
            dict(student=resnet(), data_preprocessor=MKDIR),
        ],
    )
    def test_calls_only_what_is_registered(self, model, tmp_path, monkeypatch):
        text = Config(dict(model=model)).pretty_text
        torch.save(
            {'state_dict': {'student.w': torch.ones(1)}, 'meta': {'cfg': text}},
            tmp_path / 'run.pth',
        )
        monkeypatch.chdir(tmp_path)
        with pytest.raises(ConfigError, match='is not registered; if you trust'):
            export_student('run.pth', 'student.pth', torch_export=True)
        assert [path.name for path in tmp_path.iterdir()] == ['run.pth']

    @pytest.mark.parametrize(
        'config',
        [
            {},
            dict(model=3),
            dict(model=dict(student=3)),
            dict(model=dict(student=resnet(), input_size='all')),
            dict(model=dict(student=resnet(num_classes=7))),
            dict(model=dict(student=resnet(), losses=3, teacher=[]), train_dataloader=1),
            dict(model=dict(student=timm_resnet())),
            dict(model=dict(student=dict(type='ImageClassifier'))),
        ],
    )
    def test_odd_config(self, config, tmp_path):
        """The weights are exported, and a graph is refused with a one-line error."""
        text = Config(config).pretty_text
        checkpoint, distiller = save_run(tmp_path, resnet(num_classes=10))
        content = torch.load(checkpoint)
        del content['state_dict']['student.head.fc.bias']
        torch.save(content | {'meta': {'cfg': text}}, checkpoint)
        with pytest.raises(ConfigError) as raised:
            export_student(checkpoint, str(tmp_path / 'student.pth'), torch_export=True)
        assert '\n' not in str(raised.value)
        exported = export_student(checkpoint, str(tmp_path / 'student.pth'))
        assert exported.notes == (
            f'the model card is incomplete, because the student cannot be built: {raised.value}',
        )
        assert 'Load the student' not in (tmp_path / 'student.md').read_text()

    def test_fetches_nothing(self, tmp_path):
        student = timm_resnet(checkpoint_path='no.pth', init_cfg=dict(type='Pretrained'))
        checkpoint, _ = save_run(tmp_path, timm_resnet())
        content = torch.load(checkpoint)
        content['meta']['cfg'] = Config(dict(model=dict(student=student))).pretty_text
        torch.save(content, checkpoint)
        exported = export_student(checkpoint, str(tmp_path / 'student.pth'))
        assert not exported.notes

    @pytest.mark.parametrize(
        ('name', 'defaults'),
        [
            ('mobilenet_v3_small', {}),
            ('googlenet', dict(transform_input=True, aux_logits=False)),
            ('inception_v3', dict(transform_input=True)),
        ],
    )
    def test_downloads_no_weights_of_torchvision(self, name, defaults):
        """The network is the one that torchvision builds for its weights."""
        config = dict(type='ModuleClassifier', module=f'torchvision.models:{name}')
        found = without_weights(config | dict(kwargs=dict(weights='DEFAULT', progress=False)))
        assert found == config | dict(kwargs=dict(weights=None, progress=False, **defaults))
        assert without_weights(config | dict(kwargs={})) == config | dict(kwargs={})

    def test_config_of_the_users(self, tmp_path):
        """Only a config that the user gives may import the package of a backbone."""
        checkpoint, _ = save_run(tmp_path, resnet())
        content = torch.load(checkpoint)
        path = tmp_path / 'config.py'
        path.write_text(content['meta'].pop('cfg'))
        torch.save(content, checkpoint)
        out = str(tmp_path / 'student.pth')
        with pytest.raises(ConfigError, match="give mldr-kd export the run's config as --config"):
            export_student(checkpoint, out, torch_export=True)
        export_student(checkpoint, out, torch_export=True, config=str(path))
        with pytest.raises(ConfigError, match="config='.*': there is no such file"):
            export_student(checkpoint, str(tmp_path / 'b.pth'), config='no.py')


class TestCardsCode:
    """Each code block of the card runs in the folder of the exported files."""

    @pytest.mark.parametrize(
        ('student', 'needs_us'),
        [
            pytest.param(resnet(), False, marks=pytest.mark.slow),
            (timm('vit_tiny_patch16_224', img_size=32, depth=2), False),
            pytest.param(FAMILIES['Mamba'] | dict(depth=1), True, marks=pytest.mark.slow),
        ],
        ids=['mmpretrain', 'timm', 'ours'],
    )
    def test_loads_the_weights(self, student, needs_us, tmp_path):
        checkpoint, distiller = save_run(tmp_path, student)
        blocks = []
        for name in ('a.pth', 'b.safetensors'):
            export_student(checkpoint, str(tmp_path / name))
            blocks += code_blocks(tmp_path / name)
        write_image(tmp_path / 'image.jpg', 60, 40)
        prepare, *loads = blocks[0], blocks[1], blocks[3]
        run_python(
            'import sys, torch',
            '' if needs_us else "sys.modules['mldr_kd_mm'] = None",
            'torch.set_num_threads(1)',
            prepare,
            loads[0],
            'of_pth = logits',
            loads[1],
            "torch.save([torch.from_numpy(images), of_pth, logits], 'logits')",
            cwd=tmp_path,
        )
        images, *both = torch.load(tmp_path / 'logits')
        assert (tmp_path / 'a.py').is_file() == (student['type'] != 'TimmClassifier')
        for logits in both:
            assert torch.equal(logits, student_logits(distiller, images))

    def test_runs_the_graphs(self, tmp_path, monkeypatch):
        out = tmp_path / 'student.pth'
        checkpoint, _ = save_run(tmp_path, dict(type='AColour'))
        export_student(checkpoint, str(out), onnx=True, torch_export=True)
        prepare, _, of_torch, of_onnx = code_blocks(out)
        write_image(tmp_path / 'image.jpg', 40, 60)
        monkeypatch.chdir(tmp_path)
        for code in (of_onnx, of_torch):
            names: dict = {}
            exec(f'{prepare}\n{code}', names)
            assert tuple(names['logits'].shape) == (1, 10)


def code_blocks(weights: Path) -> list[str]:
    card = weights.with_suffix('.md').read_text()
    return re.findall('```python\n(.*?)```', card, re.DOTALL)


def run_python(*lines, cwd):
    """Run code in a new interpreter, which has not imported this project."""
    script = '\n'.join(lines)
    subprocess.run([sys.executable, '-c', script], cwd=cwd, check=True)

"""INT8 files and what they cost; backbones, and detectors and segmentors that load them."""

import copy
import importlib.util
import json
import re
import shutil
import sys
import types
from pathlib import Path

import onnx
import onnxruntime
import pytest
import torch
from helpers import NUM_CLASSES, image_folder, resnet
from mmengine.config import Config
from mmengine.registry import DefaultScope
from mmpretrain.models import BaseClassifier
from timm import create_model
from torch import nn
from torch.testing import assert_close
from zoo import timm

from mldr_kd_mm.apis.export import export_student
from mldr_kd_mm.apis.quantize import _labels
from mldr_kd_mm.apis.student_images import steps_for_files
from mldr_kd_mm.cli import main
from mldr_kd_mm.registry import MODELS
from mldr_kd_mm.utils.errors import ConfigError

EXAMPLES = Path(__file__).parents[2] / 'examples'
STATISTICS = dict(mean=[120.0, 110.0, 99.0], std=[58.0, 57.0, 61.0], to_rgb=True)


@MODELS.register_module()
class SortsColours(BaseClassifier):
    """Finds the strongest colour without training.

    Args:
        layers: Number of its linear layers.
        outliers: Numbers of the layers that also get a large number, which no output depends on.
            With INT8 activations such a layer knows nothing about the colours.
    """

    def __init__(self, data_preprocessor, layers=4, outliers=()):
        super().__init__(data_preprocessor={'type': 'ClsDataPreprocessor', **data_preprocessor})
        self.outliers = outliers
        self.layers = nn.ModuleList(nn.Linear(4, 4 - (i == layers - 1)) for i in range(layers))
        for number, layer in enumerate(self.layers):
            nn.init.zeros_(layer.bias)
            # ONNX Runtime merges equal weights.
            keep = torch.tensor([1.0, 1, 1, 0]) * (1 + number / 8)
            layer.weight.data = torch.diag(keep)[: layer.out_features]

    def forward(self, inputs, data_samples=None, mode='tensor'):
        colours = inputs.mean((2, 3))
        for number, layer in enumerate(self.layers):
            outlier = torch.full_like(colours[:, :1], 1e4 if number in self.outliers else 0)
            colours = layer(torch.cat([colours[:, :3], outlier], 1))
        return colours

    def extract_feat(self, inputs):
        raise NotImplementedError

    def loss(self, inputs, data_samples):
        raise NotImplementedError


def save_run(path, student, images=None, classes=(), pixels=16, wrap=None):
    """Write a checkpoint like that of a run; return its path."""
    student = {**student, 'data_preprocessor': STATISTICS}
    resize = dict(type='Resize', scale=pixels, backend='pillow')
    pipeline = [dict(type='LoadImageFromFile'), resize, dict(type='PackInputs')]
    dataset = dict(type='ImageFolder', data_root=str(images), split='val', pipeline=pipeline)
    model = dict(type='Distiller', student=student, input_size=(3, pixels, pixels))
    train = dict(dataset, split='train')
    train = wrap(train) if wrap else dict(type='RepeatDataset', dataset=train, times=2)
    config = Config(
        dict(
            model=model,
            train_dataloader=dict(dataset=train),
            val_dataloader=dict(dataset=dataset, batch_size=8),
        )
    )
    weights = MODELS.build(student).state_dict()
    meta = dict(cfg=config.pretty_text, dataset_meta=dict(classes=list(classes)))
    state = {f'student.{name}': value for name, value in weights.items()}
    torch.save(dict(state_dict=state, meta=meta), path / 'run.pth')
    return str(path / 'run.pth')


@pytest.fixture(scope='module')
def images(tmp_path_factory):
    return image_folder(tmp_path_factory.mktemp('images'), {'train': 6, 'val': 5})


class TestInt8:
    def test_files_and_measurements(self, images, tmp_path, capsys):
        """The command line, on the run's own validation set."""
        checkpoint = save_run(tmp_path, dict(type='SortsColours'), images, 'abc')
        out = tmp_path / 'out/student.onnx'
        options = ['--int8', '--calibrate', str(images), '--calibration-images', '9']
        main(['export', checkpoint, str(out), *options])
        assert [path.name for path in sorted(out.parent.iterdir())] == ['student.md', out.name]
        (line,) = (text for text in capsys.readouterr().out.splitlines() if 'INT8' in text)
        wanted = (
            r'INT8; accuracy 100\.0 % in fp32, 100\.0 % in INT8 \(15 images\); [\d.]+ ms an '
            r'image in fp32, [\d.]+ ms in INT8; 0\.0 MB in fp32, 0\.0 MB in INT8'
        )
        assert re.fullmatch(f'{re.escape(str(out))}: {wanted}', line)
        card = out.with_suffix('.md').read_text()
        assert re.search(wanted, card)
        assert '- Accuracy on 15 validation images: 100.00 % in fp32, 100.00 % in INT8' in card
        assert 'calibrated on 9 images' in card
        assert '- Sensitive layers in fp32: none of 4' in card

        graph = onnx.load(out).graph
        kinds = [node.op_type for node in graph.node]
        assert kinds.count('QuantizeLinear') >= 4 and 'Gemm' in kinds
        types_of_weights = {
            tensor.data_type for tensor in graph.initializer if tensor.dims == [4, 4]
        }
        assert types_of_weights == {onnx.TensorProto.INT8}
        properties = {entry.key: entry.value for entry in onnx.load(out).metadata_props}
        assert json.loads(properties['classes']) == ['a', 'b', 'c']
        assert json.loads(properties['mean']) == STATISTICS['mean']
        session = onnxruntime.InferenceSession(out)
        assert session.run(None, {'images': torch.zeros(5, 3, 16, 16).numpy()})[0].shape == (5, 3)

    def test_leaves_out_the_sensitive_layer(self, images, tmp_path):
        student = dict(type='SortsColours', outliers=[2])
        checkpoint = save_run(tmp_path, student, images, 'abc')
        out = tmp_path / 'student.onnx'
        export_student(checkpoint, str(out), int8=True, calibrate=str(images / 'train'))
        card = out.with_suffix('.md').read_text()
        assert '100.00 % in fp32, 100.00 % in INT8' in card
        (kept,) = re.findall(r'in fp32: `([^`]+)` of 4', card)
        graph = onnx.load(out).graph
        weights = {tensor.name: tensor.data_type for tensor in graph.initializer}
        (node,) = (node for node in graph.node if node.name == kept)
        assert weights[node.input[1]] == onnx.TensorProto.FLOAT

    def test_too_large_a_drop_keeps_nothing(self, images, tmp_path):
        student = dict(type='SortsColours', outliers=[0, 1, 2, 3])
        checkpoint = save_run(tmp_path, student, images, 'abc')
        out = tmp_path / 'out/student.onnx'
        wanted = (
            r'^max_drop=1\.0: INT8 has 33\.33 % where fp32 has 100\.00 %, even with 2 layers in '
            r'fp32; nothing was written; .*$'
        )
        with pytest.raises(ConfigError, match=wanted):
            export_student(checkpoint, str(out), int8=True, calibrate=str(images))
        assert not list(out.parent.iterdir())

    def test_a_folder_to_validate_on(self, images, tmp_path):
        """Its labels are those of the run, whose classes have another order."""
        student = dict(type='SortsColours')
        checkpoint = save_run(tmp_path, student, tmp_path / 'gone', 'acb')
        options = dict(int8=True, calibrate=str(images), max_drop=100)
        with pytest.raises(ConfigError, match="^validate: the run's own validation set cannot"):
            export_student(checkpoint, str(tmp_path / 'student.onnx'), **options)
        options['validate'] = str(images / 'val')
        exported = export_student(checkpoint, str(tmp_path / 'student.onnx'), **options)
        # 'a' is found; 'b' and 'c' have each other's label.
        assert 'accuracy 33.3 % in fp32' in exported.files[tmp_path / 'student.onnx']

    def test_a_folder_of_training_images(self, images, tmp_path):
        """Also one that has a few of them through links."""
        checkpoint = save_run(tmp_path, dict(type='SortsColours'), images, 'abc')
        linked = shutil.copytree(images / 'val', tmp_path / 'linked')
        (linked / 'b/train.png').symlink_to(images / 'train/b/0.png')
        count = len(list((images / 'val').rglob('*.png')))
        for folder, shared in ((linked, f'1 of its {count + 1} images'), (images / 'train', '')):
            message = f"^validate='{folder}': {shared}.* run's training .*; leave it out for"
            with pytest.raises(ConfigError, match=message):
                export_student(
                    checkpoint,
                    str(tmp_path / 'student.onnx'),
                    int8=True,
                    calibrate=str(images),
                    validate=str(folder),
                )

    @pytest.mark.parametrize(
        'wrap',
        [
            lambda train: dict(type='ConcatDataset', datasets=[train, train]),
            lambda train: dict(
                type='mmpretrain.CustomDataset',
                data_root='images/train',
                pipeline=train['pipeline'],
            ),
            lambda train: dict(type='RepeatDataset', dataset=train, times=2),
        ],
        ids=['ConcatDataset', 'CustomDataset', 'RepeatDataset'],
    )
    def test_relative_training_images(self, wrap, images, tmp_path, monkeypatch):
        """In any data set; found from the checkpoint if the run was started elsewhere."""
        (tmp_path / 'run').mkdir()
        checkpoint = save_run(
            tmp_path / 'run', dict(type='SortsColours'), 'images', 'abc', wrap=wrap
        )
        options = dict(int8=True, calibrate=str(images), validate=str(images / 'train'))
        (tmp_path / 'images').symlink_to(images)
        for place in (tmp_path, tmp_path / 'run'):
            monkeypatch.chdir(place)
            with pytest.raises(ConfigError, match="18 of its 18 images .* run's training images"):
                export_student(checkpoint, str(tmp_path / 'a.onnx'), **options)

    @pytest.mark.parametrize(
        ('wrap', 'message'),
        [
            (None, "data_root='gone': there is no such folder"),
            (lambda _: None, 'train_dataloader.dataset: '),
            (
                lambda train: dict(type='Digits', split='train', pipeline=[]),
                'Digits does not read image files',
            ),
        ],
        ids=['gone', 'unknown', 'no files'],
    )
    def test_training_images_that_are_not_found(self, wrap, message, images, tmp_path):
        checkpoint = save_run(tmp_path, dict(type='SortsColours'), 'gone', 'abc', wrap=wrap)
        options = dict(int8=True, calibrate=str(images), validate=str(images / 'val'))
        (note,) = export_student(checkpoint, str(tmp_path / 'a.onnx'), **options).notes
        folder = str(images / 'val')
        assert note.startswith(
            f"validate={folder!r}: could not be compared with the run's training images ("
        )
        assert message in note and '\n' not in note

    def test_own_validation_set_with_a_new_class(self, images, tmp_path):
        """The labels of the other classes have changed."""
        mine = shutil.copytree(images, tmp_path / 'mine')
        checkpoint = save_run(tmp_path, dict(type='SortsColours'), mine, 'abc')
        image_folder(mine, {'train': 2, 'val': 1}, '!')
        message = "^validate: the run's own validation set has 4 classes now, which are not the 3"
        with pytest.raises(ConfigError, match=message):
            export_student(
                checkpoint, str(tmp_path / 'student.onnx'), int8=True, calibrate=str(images)
            )

    def test_names_of_classes_that_are_unknown(self, images, tmp_path):
        """Such a class has its number as its name, as in predictions; ten is before two."""
        checkpoint = save_run(tmp_path, dict(type='SortsColours'), images, ())
        options = dict(int8=True, calibrate=str(images), validate=str(images / 'val'))
        with pytest.raises(ConfigError, match="class 'a' is not of the run's 3 classes"):
            export_student(checkpoint, str(tmp_path / 'student.onnx'), **options)
        numbers = [str(number) for number in range(11)]
        assert [*_labels(['0', '1', '10', '2'], numbers, 11, '', '')] == [0, 1, 10, 2]

    @pytest.mark.parametrize(
        ('arguments', 'message'),
        [
            (dict(calibrate='empty'), "^calibrate: there are no images in '.*empty'"),
            (dict(calibrate='gone'), "^calibrate='.*gone': there is no such folder"),
            (dict(calibrate='one'), "^calibrate: '.*one' has one class, 'a'; must have"),
            (dict(), '^calibrate: must be a folder of images for int8=True$'),
            (dict(calibrate='images', calibration_images=0), '^calibration_images=0: must be'),
            (dict(calibrate='images', max_drop=-1), '^max_drop=-1: must be a non-neg'),
            (dict(calibrate='images', validate='one'), "^validate: '.*one' has one class"),
            (
                dict(calibrate='images', validate='others'),
                "^validate='.*others': class 'x' is not of the run's 3 classes",
            ),
            (dict(calibrate='images', onnx=True), '^int8=True: must be without onnx, torch_export'),
            (dict(calibrate='images', onnx_preprocessing=True), '^int8=True: must be without'),
            (
                dict(int8=False, calibrate='images'),
                '^calibrate=.* must not be set without int8',
            ),
            (dict(int8=False, max_drop=1.0), r'^max_drop=1\.0: must not be set without int8=True$'),
            (dict(int8=False, calibration_images=256), '^calibration_images=256: must not be set'),
            (dict(int8=False, validate='images'), '^validate=.*: must not be set without int8'),
            (dict(int8=False, backbone=True), r'^out=.* \.pth or \.safetensors for backbone'),
        ],
    )
    def test_bad_input_is_one_line(self, arguments, message, images, tmp_path):
        (tmp_path / 'empty').mkdir()
        image_folder(tmp_path / 'one', {'': 2}, 'a')
        image_folder(tmp_path / 'others', {'': 2}, 'axb')
        folders = {name: str(tmp_path / name) for name in ('empty', 'gone', 'one', 'others')}
        folders['images'] = str(images)
        arguments = {name: folders.get(value, value) for name, value in arguments.items()}
        checkpoint = save_run(tmp_path, dict(type='SortsColours'), images, 'abc')
        with pytest.raises(ConfigError, match=message) as raised:
            export_student(checkpoint, str(tmp_path / 'out/s.onnx'), **{'int8': True, **arguments})
        assert '\n' not in str(raised.value)
        assert not (tmp_path / 'out').exists()


class TestBackbone:
    @pytest.mark.parametrize('name', ['resnet18', 'mobilenetv2_050', 'vit', 'deit'])
    def test_timm_loads_all_of_it(self, name, tmp_path):
        small = dict(img_size=32, depth=3, embed_dim=32, num_heads=2)
        names = dict(vit='vit_tiny_patch16_224', deit='deit_tiny_distilled_patch16_224')
        student = timm(names.get(name, name), **(small if name in names else {}))
        checkpoint = save_run(tmp_path, student, pixels=32)
        exported = export_student(checkpoint, str(tmp_path / 'backbone.pth'), backbone=True)
        assert [path.name for path in exported.files] == ['backbone.pth', 'backbone.md']
        assert 'without the head' in exported.files[tmp_path / 'backbone.pth']
        weights = torch.load(tmp_path / 'backbone.pth')['state_dict']
        all_of_it = MODELS.build({**student, 'data_preprocessor': STATISTICS}).model.state_dict()
        left_out = {key.partition('.')[0] for key in set(all_of_it) - set(weights)}
        heads = dict(resnet18={'fc'}, vit={'head'}, deit={'head', 'head_dist'})
        assert left_out == heads.get(name, {'classifier'})

        (code,) = re.findall(
            '```python\n(.*?)```', (tmp_path / 'backbone.md').read_text(), re.DOTALL
        )
        fields = {}
        exec(code.replace("'backbone.pth'", repr(str(tmp_path / 'backbone.pth'))), fields)
        loaded = [tensor.flatten() for tensor in fields['model'].state_dict().values()]
        known = {(tensor.numel(), float(tensor.double().sum())) for tensor in weights.values()}
        assert loaded and all((len(t), float(t.double().sum())) in known for t in loaded)
        assert fields['model'].eval()(torch.zeros(1, 3, 32, 32))

    def test_mmpretrain_loads_all_of_it(self, tmp_path):
        checkpoint = save_run(tmp_path, resnet(), pixels=32)
        export_student(checkpoint, str(tmp_path / 'backbone.pth'), backbone=True)
        weights = torch.load(tmp_path / 'backbone.pth')['state_dict']
        (code,) = re.findall(
            '```python\n(.*?)```', (tmp_path / 'backbone.md').read_text(), re.DOTALL
        )
        fields = {}
        exec(code.replace("'backbone.pth'", repr(str(tmp_path / 'backbone.pth'))), fields)
        backbone = MODELS.build(fields['backbone'])
        backbone.init_weights()
        assert set(backbone.state_dict()) == set(weights)
        assert_close(dict(backbone.state_dict()), weights)

    @pytest.fixture
    def operations(self, monkeypatch):
        """Let mmcv be imported without its compiled operations, which a training step needs not."""
        if importlib.util.find_spec('mmcv._ext') is None:
            monkeypatch.setitem(sys.modules, 'mmcv._ext', _NoOperations('mmcv._ext'))

    @pytest.mark.parametrize('detector', ['retinanet_resnet18', 'retinanet_timm'])
    def test_detector_trains_a_step(self, detector, tmp_path, monkeypatch, operations):
        pytest.importorskip('mmdet', reason='needs onedl-mmdetection or mmdet')
        import mmdet.models  # noqa: F401
        from mmdet.registry import MODELS as DETECTORS
        from mmdet.structures import DetDataSample
        from mmengine.structures import InstanceData

        name = dict(retinanet_timm='mobilenetv2_100').get(detector, 'resnet18')
        checkpoint = save_run(tmp_path, timm(name), pixels=32)
        export_student(checkpoint, str(tmp_path / 'backbone.pth'), backbone=True)
        weights = torch.load(tmp_path / 'backbone.pth')['state_dict']
        monkeypatch.chdir(tmp_path)
        config = Config.fromfile(EXAMPLES / f'detection/configs/{detector}.py')
        torch.manual_seed(0)
        model = DETECTORS.build(config.model)
        model.init_weights()
        values = {float(value.double().sum()) for value in weights.values()}
        own = model.backbone.state_dict().values()
        assert all(float(value.double().sum()) in values for value in own)
        if detector == 'retinanet_resnet18':
            assert set(model.backbone.state_dict()) == set(weights)

        sample = DetDataSample(metainfo=dict(img_shape=(64, 64), pad_shape=(64, 64)))
        boxes = torch.tensor([[8.0, 8, 40, 40]])
        sample.gt_instances = InstanceData(bboxes=boxes, labels=torch.tensor([3]))
        self.train_a_step(model, sample)

    def test_segmentor_trains_a_step(self, tmp_path, monkeypatch):
        pytest.importorskip('mmseg', reason='needs onedl-mmsegmentation or mmsegmentation')
        import mmseg.models  # noqa: F401
        from mmengine.structures import PixelData
        from mmseg.registry import MODELS as SEGMENTORS
        from mmseg.structures import SegDataSample

        checkpoint = save_run(tmp_path, timm('resnet18'), pixels=32)
        export_student(checkpoint, str(tmp_path / 'backbone.pth'), backbone=True)
        weights = torch.load(tmp_path / 'backbone.pth')['state_dict']
        monkeypatch.chdir(tmp_path)
        config = Config.fromfile(EXAMPLES / 'segmentation/configs/upernet_resnet18.py')
        config.model.data_preprocessor.size = (64, 64)
        torch.manual_seed(0)
        with DefaultScope.overwrite_default_scope('mmseg'):
            model = SEGMENTORS.build(config.model)
        model.init_weights()
        assert_close(dict(model.backbone.state_dict()), weights, rtol=0, atol=0)

        sample = SegDataSample(metainfo=dict(img_shape=(64, 64)))
        sample.gt_sem_seg = PixelData(data=torch.randint(0, 19, (1, 64, 64)))
        self.train_a_step(model, sample)

    @staticmethod
    def train_a_step(model, sample):
        """Train a model of mmdetection or mmsegmentation on two images with the same annotation."""
        images = list(torch.randint(0, 255, (2, 3, 64, 64)).byte())
        batch = dict(inputs=images, data_samples=[sample, copy.deepcopy(sample)])
        optimizer = torch.optim.SGD(model.parameters(), lr=0.01)
        losses = model(**model.data_preprocessor(batch, True), mode='loss')
        loss, _ = model.parse_losses(losses)
        loss.backward()
        optimizer.step()
        assert loss.isfinite()
        assert all(p.grad is not None for p in model.backbone.parameters() if p.requires_grad)


class _NoOperations(types.ModuleType):
    """Stands for mmcv's compiled operations."""

    def __getattr__(self, name):
        if name.startswith('__'):
            raise AttributeError(name)

        def missing(*args, **kwargs):
            raise RuntimeError(f'mmcv was installed without {name}')

        return missing


def test_timm_and_mmdetection_have_the_same_names():
    """Known differences of a ResNet: none but the head, so mmdetection loads timm's student."""
    names = set(create_model('resnet18', num_classes=NUM_CLASSES).state_dict())
    backbone = MODELS.build(dict(type='mmpretrain.ResNet', depth=18))
    assert names - set(backbone.state_dict()) == {'fc.weight', 'fc.bias'}


def test_files_are_prepared_as_the_arrays_of_the_validation():
    """A data set of arrays, such as CIFAR-100, has no step that reads a file."""
    steps = [dict(type='ResizeEdge', scale=20), dict(type='CenterCrop', crop_size=16)]
    load, pack = dict(type='LoadImageFromFile'), dict(type='PackInputs')
    assert steps_for_files([*steps, dict(type='PackPlanes')], (3, 16, 16)) == [load, *steps, pack]
    resize = dict(type='Resize', scale=(24, 16), backend='pillow')
    assert steps_for_files([load, pack], (3, 16, 24)) == [load, resize, pack]

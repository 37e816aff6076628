"""Predictions of an exported student are those of the run's validation."""

import csv
import json
import os
import re
import shutil
import sys
from pathlib import Path

import numpy
import onnx
import onnxruntime
import pytest
import torch
from helpers import resnet
from PIL import Image, ImageOps
from safetensors.torch import save_file
from saved_run import STATISTICS, of_the_run, save_run, set_classes, validation
from sklearn.datasets import load_sample_images
from timm import create_model
from timm.data import create_transform, resolve_model_data_config
from torch.testing import assert_close
from zoo import timm

from mldr_kd_mm import Prediction, cli, predict
from mldr_kd_mm.apis import export, onnx_preprocessing, preprocessing, student_images
from mldr_kd_mm.apis.description import StudentDescription
from mldr_kd_mm.apis.export import export_student
from mldr_kd_mm.apis.predict import write_predictions
from mldr_kd_mm.apis.student_images import StudentImages
from mldr_kd_mm.registry import HOOKS, MODELS
from mldr_kd_mm.utils.errors import ConfigError, MissingFileError

# Some differ only in characters that no terminal shows.
CLASSES = ['a', 'a\u200b', 'b\xa0`', "b'", 'c\udcff', 'class, d', *'efgh']
CONFIG = validation(
    dict(type='ResizeEdge', scale=73, backend='pillow', interpolation='bicubic'),
    dict(type='CenterCrop', crop_size=64),
)
NO_IMAGE = 'notes.jpg'


@pytest.fixture(scope='module')
def photos(tmp_path_factory):
    """Photographs of odd shapes and kinds, and a file that is no image."""
    folder = tmp_path_factory.mktemp('photos')
    china, flower = (Image.fromarray(image) for image in load_sample_images().images)
    (folder / 'deep/er').mkdir(parents=True)
    china.save(folder / 'landscape.jpg')
    flower.crop((200, 0, 420, 427)).save(folder / 'deep/portrait.png')
    china.convert('L').save(folder / 'deep/er/grey.PNG')
    translucent = flower.copy()
    translucent.putalpha(flower.convert('L'))
    translucent.save(folder / 'rgba.png')
    exif = Image.Exif()
    exif[0x0112] = 6  # turned by a quarter
    china.crop((0, 100, 300, 300)).save(folder / 'rotated.jpg', exif=exif)
    china.crop((100, 0, 101, 90)).save(folder / 'strip.png')
    flower.crop((0, 0, 500, 200)).convert('CMYK').save(folder / 'cmyk.jpg')
    flower.quantize(16).save(folder / 'palette.png')
    flower.resize((20, 13)).save(folder / 'small.webp')
    for name in ('notes.txt', '.hidden.jpg', 'deep/.hidden.png'):
        (folder / name).write_text('no image')
    return folder


@pytest.fixture(scope='module')
def run(tmp_path_factory):
    """A run of a timm student, exported in all formats."""
    folder = tmp_path_factory.mktemp('run')
    student = timm('test_resnet', data_preprocessor=STATISTICS)
    checkpoint, distiller = save_run(folder, student, pixels=64, **CONFIG)
    set_classes(checkpoint, *CLASSES)
    export_student(checkpoint, str(folder / 'folder'), onnx=True)
    export_student(checkpoint, str(folder / 'file.pth'))
    export_student(checkpoint, str(folder / 'other.safetensors'))
    return folder, distiller


@pytest.fixture(scope='module')
def raw(run):
    """The graph of the run's student that takes uint8 images."""
    path = run[0] / 'raw.onnx'
    exported = export_student(str(run[0] / 'run.pth'), str(path), onnx_preprocessing=True)
    assert 'prepares the images; probabilities differ' in exported.files[path]
    return path


STUDENTS = ('folder', 'file.pth', 'other.safetensors', 'folder/model.onnx', 'run.pth')


def in_validation(distiller, config, result):
    _, logits = of_the_run(distiller, config, result.path)
    return logits.softmax(1)[0]


class TestTheSameAsTheValidation:
    @pytest.mark.parametrize('name', STUDENTS)
    def test_photographs_of_odd_shapes(self, name, run, photos):
        folder, distiller = run
        results = predict(folder / name, photos, top_k=10, batch_size=4)
        assert len(results) == 9 and not any(result.error for result in results)
        best = set()
        for result in results:
            expected = in_validation(distiller, CONFIG, result)
            numbers = [CLASSES.index(name) for name in result.classes]
            assert_close(
                torch.tensor(result.probabilities), expected[numbers], atol=1e-5, rtol=1e-4
            )
            assert list(result.probabilities) == sorted(result.probabilities, reverse=True)
            best.add(result.classes[0])
        assert len(best) > 1, 'the predictions must depend on the images'

    def test_timm_predicts_the_same(self, run, photos):
        """Decoders differ by a grey level or two in JPEG files, and more for CMYK."""
        model = create_model(f'local-dir:{run[0] / "folder"}', pretrained=True).eval()
        transform = create_transform(**resolve_model_data_config(model))
        for result in predict(run[0] / 'folder', photos, top_k=10):
            if 'cmyk' in result.path:
                continue
            image = ImageOps.exif_transpose(Image.open(result.path)).convert('RGB')
            with torch.no_grad():
                expected = model(transform(image)[None]).softmax(1)[0]
            numbers = [CLASSES.index(name) for name in result.classes]
            assert_close(torch.tensor(result.probabilities), expected[numbers], atol=0.02, rtol=0)

    @pytest.mark.parametrize(
        ('steps', 'statistics'),
        [
            ([dict(type='Resize', scale=(40, 32))], STATISTICS | dict(to_rgb=False)),
            ([dict(type='ResizeEdge', scale=36), dict(type='CenterCrop', crop_size=32)], {}),
            (
                [
                    dict(type='Invert', prob=1.0),
                    dict(type='ResizeEdge', scale=48, edge='long'),
                    dict(type='Resize', scale=(32, 32)),
                ],
                STATISTICS,
            ),
        ],
        ids=['BGR', 'no statistics', 'other steps'],
    )
    def test_other_validations(self, steps, statistics, photos, tmp_path):
        config = validation(*steps)
        config['data_preprocessor'] = statistics
        student = resnet(data_preprocessor=statistics) if statistics else resnet()
        checkpoint, distiller = save_run(tmp_path, student, **config)
        export_student(checkpoint, str(tmp_path / 'student'))
        for result in predict(tmp_path / 'student', photos, top_k=10):
            if 'strip' in result.path and len(steps) == 3:  # its short edge would be 0 pixels
                assert result.error.startswith(f'{photos}/strip.png: ')
                continue
            expected = in_validation(distiller, config, result)
            numbers = [int(name) for name in result.classes]  # the run has no class names
            assert_close(
                torch.tensor(result.probabilities), expected[numbers], atol=1e-5, rtol=1e-4
            )

    def test_data_that_is_not_in_files(self, photos, tmp_path):
        """CIFAR's pipeline reads arrays of the right size."""
        dataset = dict(type='CIFAR10', pipeline=[dict(type='PackInputs')])
        config = dict(val_dataloader=dict(dataset=dataset))
        student = timm('test_resnet', data_preprocessor=STATISTICS | dict(to_rgb=False))
        checkpoint, distiller = save_run(tmp_path, student, **config)
        (result,) = predict(checkpoint, photos / 'palette.png', top_k=10)
        image = Image.open(photos / 'palette.png').convert('RGB')
        image = image.resize((32, 32), Image.Resampling.BILINEAR)
        inputs = torch.from_numpy(numpy.array(image)).permute(2, 0, 1)
        batch = distiller.student.data_preprocessor(dict(inputs=[inputs]))
        with torch.no_grad():
            expected = distiller.student(batch['inputs']).softmax(1)[0]
        assert_close(torch.tensor(result.probabilities), expected.sort(descending=True).values)


class TestFindImages:
    def test_folders_files_and_patterns(self, photos, monkeypatch):
        monkeypatch.chdir(photos)
        found = student_images.find_images
        assert found('deep') == ['deep/er/grey.PNG', 'deep/portrait.png']
        assert found(['deep', '*.png', 'deep/er']) == [
            *found('deep'),
            *('palette.png', 'rgba.png', 'strip.png'),
        ]
        assert found('**/*.png') == ['deep/portrait.png', 'palette.png', 'rgba.png', 'strip.png']
        assert found('notes.txt') == ['notes.txt']

    def test_odd_names_and_links(self, tmp_path):
        for name in ('[a].png', 'b*.png', 'a?.png'):
            (tmp_path / name).touch()
        (tmp_path / 'loop').symlink_to(tmp_path)
        os.mkfifo(tmp_path / 'pipe.png')  # Reading it would wait for ever.
        assert len(student_images.find_images(tmp_path)) == 3
        assert len(student_images.find_images(tmp_path / '[a].png')) == 1

    @pytest.mark.parametrize(
        'given',
        [
            './birds/**',
            'birds/val/**',
            ['birds/val', 'birds/../birds/val'],
            ['birds/val', 'birds', './birds/val/owl/*.png'],
            ['ABSOLUTE', 'birds/val', 'linked/owl/0.png'],
            ['linked', 'birds/val/owl/0.png'],
        ],
        ids=str,
    )
    def test_each_image_once(self, given, tmp_path, monkeypatch):
        monkeypatch.chdir(tmp_path)
        for name in ('owl', 'wren'):
            (tmp_path / 'birds/val' / name).mkdir(parents=True)
            for number in range(3):
                (tmp_path / f'birds/val/{name}/{number}.png').touch()
        (tmp_path / 'linked').symlink_to('birds/val')
        if isinstance(given, list):
            given = [str(tmp_path / 'birds') if name == 'ABSOLUTE' else name for name in given]
        found = student_images.find_images(given)
        assert len(found) == len(set(map(os.path.realpath, found))) == 6

    def test_mistakes(self, tmp_path):
        with pytest.raises(MissingFileError, match="images='nowhere': there is no such file or fo"):
            student_images.find_images([tmp_path, 'nowhere'])
        with pytest.raises(MissingFileError, match=r"images='\*\.jpg': matches no file"):
            student_images.find_images('*.jpg')
        with pytest.raises(ConfigError, match='there are no images; files must end in .bmp, '):
            student_images.find_images(tmp_path)

    def test_folder_that_cannot_be_listed(self, photos, monkeypatch):
        """Its images would be left out without a word."""
        scan = os.scandir

        def refuse(path):
            if str(path).endswith('deep'):
                raise PermissionError(13, 'Permission denied', str(path))
            return scan(path)

        monkeypatch.setattr(os, 'scandir', refuse)
        with pytest.raises(ConfigError, match=r"^images: '.*/deep' cannot be listed: Perm"):
            student_images.find_images(photos)


class TestMistakes:
    @pytest.mark.parametrize(
        ('student', 'message'),
        [
            ('no.pth', "student='no.pth': there is no such file"),
            ('no.onnx', "student='no.onnx': there is no such file"),
            ('hf-hub:a/b', "student='hf-hub:a/b': must be a file or a folder; download it first"),
            ('https://a.b/c.onnx', 'must be a file or a folder; download it first'),
            ('a.pt2', "student='a.pt2': must be a folder, .pth, .safetensors or .onnx; export one"),
            ('photos', "student='photos': must be a file, an exported folder, or the work direct"),
            ('teacher.pth', "student='teacher.pth': is a checkpoint of a run without a teacher; m"),
            ('old.pth', "student='old.pth': does not describe its images and classes; export it"),
            ('old.safetensors', 'does not describe its images and classes; export it again: mldr'),
            ('bad.onnx', "student='bad.onnx': "),
            (
                'headless.pth',
                "student='headless.pth': must have a head to predict classes; measure",
            ),
            ('other.pth', "model.type='os.system': is not registered"),
            ('photos/rgba.png', 'cannot be read as weights'),
        ],
    )
    def test_students(self, student, message, run, photos, tmp_path, monkeypatch):
        monkeypatch.chdir(tmp_path)
        (tmp_path / 'photos').symlink_to(photos)
        (tmp_path / 'bad.onnx').write_bytes(b'\x08\x07no graph')
        content = torch.load(run[0] / 'file.pth')
        described = content['meta'].pop('student')
        torch.save(content, 'old.pth')
        save_file(content['state_dict'], 'old.safetensors')
        torch.save(dict(content, meta=dict(cfg='epochs = 1', epoch=1)), 'teacher.pth')
        content['meta']['student'] = described | dict(output='"feature"')
        torch.save(content, 'headless.pth')
        content['meta']['student'] = described | dict(model='{"type": "os.system"}')
        torch.save(content, 'other.pth')
        with pytest.raises(ConfigError) as raised:
            predict(student, photos / 'rgba.png')
        assert message in str(raised.value) and '\n' not in str(raised.value)

    @pytest.mark.parametrize('option', ['top_k', 'batch_size'])
    def test_numbers(self, option, run, photos):
        with pytest.raises(ConfigError, match=f'{option}=0: must be a positive integer'):
            predict(run[0] / 'folder', photos, **{option: 0})

    @pytest.mark.parametrize('name', ['folder', 'folder/model.onnx'])
    def test_device(self, name, run, photos):
        with pytest.raises(ConfigError, match="device='cuda:99': "):
            predict(run[0] / name, photos, device='cuda:99')
        with pytest.raises(ConfigError, match="device='tpv': "):
            predict(run[0] / name, photos, device='tpv')

    def test_a_step_that_is_not_registered(self, run, photos, tmp_path):
        content = torch.load(run[0] / 'file.pth')
        content['meta']['student']['pipeline'] = '[{"type": "os.mkdir", "path": "CANARY"}]'
        torch.save(content, tmp_path / 'a.pth')
        with pytest.raises(ConfigError, match=r"pipeline\.2\.type='os\.mkdir': is not registered"):
            predict(tmp_path / 'a.pth', photos)

    def test_a_strip_that_would_fill_the_memory(self, run, tmp_path):
        Image.new('L', (1, 60_000)).save(tmp_path / 'a.png')
        (result,) = predict(run[0] / 'folder', tmp_path)
        assert 'a.png: resized by its short edge it would have 319740000 pixels' in result.error


@pytest.fixture
def command(capfd):
    def run(*args):
        capfd.readouterr()
        try:
            cli.main(['predict', *map(str, args)])
        except SystemExit as end:
            return end.code, *capfd.readouterr()
        return 0, *capfd.readouterr()

    return run


class TestCommand:
    def test_a_table(self, command, run, photos):
        code, out, err = command(run[0] / 'folder', photos / 'deep', '--top-k', 2)
        header, *rows = out.splitlines()
        assert code == 0 and not err
        assert header.split() == ['path', 'class', 'probability', 'class_2', 'probability_2']
        results = predict(run[0] / 'folder', photos / 'deep', top_k=2)
        for row, result in zip(rows, results, strict=True):
            assert row.startswith(f'{result.path}  ')
            shown = ''.join(filter(str.isprintable, result.classes[0]))
            assert re.search(f'{re.escape(shown)} +{result.probabilities[0]:.6f}', row)

    def test_files_that_are_not_read(self, command, run, photos, tmp_path):
        """One line for all folders; a file counts once, and not at all if it is named."""
        folder = shutil.copytree(photos / 'deep', tmp_path / 'mine/deep').parent
        for name in ('a.heic', 'deep/b.heic', 'c.avif', 'deep/d'):
            (folder / name).touch()
        shutil.copy(photos / 'palette.png', folder / 'named.gif')
        (folder / 'broken.jpg').symlink_to('nowhere')
        os.mkfifo(folder / 'pipe.png')
        given = (folder / 'deep', folder, folder / 'named.gif')
        code, out, err = command(run[0] / 'folder', *given)
        assert code == 0 and len(out.splitlines()) == 1 + 3
        (line,) = err.splitlines()
        assert f"images: not read: 6 files in '{folder}/deep' and 1 other folder (2 .heic, " in line
        kinds = ('.avif', 'broken links', 'no regular files', 'without a suffix')
        assert all(f'1 {kind}' in line for kind in kinds)

    def test_a_pipe_is_named(self, command, run, photos, tmp_path):
        """Reading it would wait for ever."""
        os.mkfifo(tmp_path / 'pipe.jpg')
        given = (tmp_path / 'pipe.jpg', photos / 'palette.png', '/dev/zero')
        code, out, err = command(run[0] / 'folder', *given)
        assert code == 1 and len(out.splitlines()) == 2
        assert err.splitlines() == [
            *(
                f'error: {path}: cannot be read as an image (it is no regular file); replace or '
                'remove it'
                for path in given[::2]
            ),
            '2 of 3 files cannot be read',
        ]

    def test_a_file_that_is_no_image_is_named(self, command, run, photos, tmp_path):
        shutil.copytree(photos / 'deep', tmp_path / 'deep')
        (tmp_path / 'deep/a.jpg').write_text('no image')
        Image.new('L', (9, 9)).save(tmp_path / 'deep/b.png')
        cut = (tmp_path / 'deep/b.png').read_bytes()[:-40]
        (tmp_path / 'deep/b.png').write_bytes(cut)
        for out in (tmp_path / 'out.csv', tmp_path / 'out.json'):
            code, text, err = command(
                run[0] / 'folder', tmp_path / 'deep', '--out', out, '--batch-size', 1
            )
            assert code == 1 and text == f'{out}: 2 images\n'
            assert [
                line.partition(': cannot be read as an image')[0] for line in err.splitlines()
            ] == [
                f'error: {tmp_path}/deep/a.jpg',
                f'error: {tmp_path}/deep/b.png',
                '2 of 4 files cannot be read',
            ]
        results = predict(run[0] / 'folder', tmp_path / 'deep')
        assert [bool(result.error) for result in results] == [True, True, False, False]
        rows = list(csv.DictReader((tmp_path / 'out.csv').open()))
        content = json.loads((tmp_path / 'out.json').read_text())
        for result, row, entry in zip(results[2:], rows, content, strict=True):
            assert [row['path'], row['class']] == [result.path, *result.classes]
            assert float(row['probability']) == pytest.approx(result.probabilities[0], abs=1e-6)
            assert entry == dict(
                path=result.path,
                classes=[
                    {
                        'class': result.classes[0],
                        'probability': pytest.approx(result.probabilities[0]),
                    },
                ],
            )

    @pytest.mark.parametrize(
        ('args', 'message'),
        [
            (('STUDENT', 'no'), "images='no': there is no such file or folder"),
            (('STUDENT', '.'), "images='.': there are no images; files must end in .bmp, "),
            (('no.pth', 'PHOTOS'), "student='no.pth': there is no such file"),
            (('STUDENT', 'PHOTOS', '--out', 'a.txt'), "--out 'a.txt': must end with .csv or .json"),
            (('STUDENT', 'PHOTOS', '--out', 'b/a.csv'), "--out 'b/a.csv': there is no such folder"),
            (('STUDENT', 'PHOTOS', '--top-k', '0'), '--top-k 0: must be a positive integer'),
        ],
    )
    def test_mistakes(self, args, message, command, run, photos, tmp_path, monkeypatch):
        monkeypatch.chdir(tmp_path)
        places = dict(STUDENT=run[0] / 'folder', PHOTOS=photos)
        code, out, err = command(*(places.get(arg, arg) for arg in args))
        assert code == 2 and not out and err.startswith(f'error: {message}')
        assert err.count('\n') == 1 and not list(tmp_path.iterdir())

    def test_an_existing_file_is_not_replaced(self, command, run, photos, tmp_path, monkeypatch):
        """It is refused before the first image is read."""
        monkeypatch.setattr(sys.modules['mldr_kd_mm.apis.predict'], 'predict', None)
        (tmp_path / 'folder.csv').mkdir()
        (tmp_path / 'config.json').write_text('{}')
        (tmp_path / 'link.csv').symlink_to('nowhere')
        for name, message in (
            ('folder.csv', 'is a folder; must be a file'),
            ('config.json', 'exists already; name another file, or replace it with --overwrite'),
            ('link.csv', 'exists already; name another file, or replace it with --overwrite'),
        ):
            code, out, err = command(run[0] / 'folder', photos, '--out', tmp_path / name)
            assert (code, out) == (2, '')
            assert err == f"error: --out '{tmp_path}/{name}': {message}\n"
        assert (tmp_path / 'config.json').read_text() == '{}'
        code, _, err = command(run[0] / 'folder', photos, '--overwrite')
        assert code == 2 and err == 'error: --overwrite: must not be set without --out\n'

    def test_overwrite(self, command, run, photos, tmp_path):
        (tmp_path / 'a.json').write_text('old')
        image = photos / 'palette.png'
        code, *_ = command(run[0] / 'folder', image, '--out', tmp_path / 'a.json', '--overwrite')
        text = (tmp_path / 'a.json').read_text()
        assert code == 0 and len(json.loads(text)) == 1 and text.endswith(']\n')

    def test_nothing_is_written_if_no_image_can_be_read(self, command, run, tmp_path):
        (tmp_path / 'a.jpg').touch()
        (tmp_path / 'out.csv').write_text('kept')
        options = ('--out', tmp_path / 'out.csv', '--overwrite')
        code, out, _ = command(run[0] / 'folder', tmp_path, *options)
        assert code == 1 and not out
        assert (tmp_path / 'out.csv').read_text() == 'kept'


def test_names_that_are_no_text(tmp_path):
    odd = Prediction('a\udcff,\n"b".png', ('x',), (0.5,))
    write_predictions(tmp_path / 'a.csv', [odd])
    with open(tmp_path / 'a.csv', errors='surrogateescape', newline='') as file:
        assert list(csv.reader(file))[1] == [odd.path, 'x', '0.500000']
    write_predictions(tmp_path / 'a.json', [odd])
    assert json.loads((tmp_path / 'a.json').read_text())[0]['path'] == odd.path


def test_python_of_the_page(run, raw, photos, tmp_path, monkeypatch, capsys):
    """All blocks of docs/deploy.md run, in the folder of an exported student."""
    page = (Path(__file__).parents[2] / 'docs/deploy.md').read_text()
    blocks = re.findall('```python\n(.*?)```', page, re.DOTALL)
    shutil.copytree(run[0] / 'folder', tmp_path / 'student')
    (tmp_path / 'photos').symlink_to(photos)
    shutil.copy(photos / 'rotated.jpg', tmp_path / 'image.jpg')
    shutil.copy(raw, tmp_path / 'student.onnx')
    torch.save(create_model('resnet10t', num_classes=10).state_dict(), tmp_path / 'student.pth')
    # A student that timm does not build.
    checkpoint, _ = save_run(tmp_path, resnet(data_preprocessor=STATISTICS), **CONFIG)
    set_classes(checkpoint, *CLASSES)
    export_student(checkpoint, str(tmp_path / 'other'))
    for name in ('config.py', 'model.pth'):
        shutil.copy(tmp_path / 'other' / name, tmp_path / 'student')
    monkeypatch.chdir(tmp_path)
    printed, names = [], {}
    for block in blocks:
        exec(block, names)
        printed.append(capsys.readouterr().out.splitlines())
    predicted, by_timm, by_mmpretrain, _, _, classes, _ = printed
    assert len(predicted) == 9
    assert by_timm[0] in CLASSES
    assert by_mmpretrain[-1].endswith(tuple(CLASSES))  # after a progress bar
    assert json.loads(classes[0]) == CLASSES
    assert names['probabilities'].shape == (1, 10)
    for hook in names['custom_hooks']:
        HOOKS.build(hook)


RESIZING = {
    'bicubic': [
        dict(type='ResizeEdge', scale=73, backend='pillow', interpolation='bicubic'),
        dict(type='CenterCrop', crop_size=64),
    ],
    'bilinear': [
        dict(type='ResizeEdge', scale=64, backend='pillow'),
        dict(type='CenterCrop', crop_size=45),
    ],
    'squash': [dict(type='Resize', scale=(48, 64), backend='pillow')],
    'OpenCV': [dict(type='ResizeEdge', scale=73), dict(type='CenterCrop', crop_size=64)],
    'OpenCV bicubic': [dict(type='Resize', scale=(50, 50), interpolation='bicubic')],
}


class TestOnnxPreprocessing:
    @pytest.mark.parametrize('order', ['RGB', 'BGR'])
    @pytest.mark.parametrize('name', RESIZING)
    def test_pixels_differ_by_a_level(self, name, order, photos, tmp_path):
        config = validation(*RESIZING[name])
        config['data_preprocessor'] = STATISTICS | dict(to_rgb=order == 'RGB')
        size = preprocessing.image_size(config['val_dataloader']['dataset'])
        student = torch.nn.Module()
        student.data_preprocessor = MODELS.build(
            dict(type='ClsDataPreprocessor', **config['data_preprocessor'])
        )
        images = preprocessing.Preprocessing.of(config, student, (3, *size))
        description = StudentDescription(
            *({}, 'mldr_kd_mm', [3, *size], images.channel_order, images.mean, images.std),
            *(config['val_dataloader']['dataset']['pipeline'], images.resize, None),
        )
        # Differences of the logarithms of these probabilities are those of the network's input.
        network = onnx.parser.parse_model(
            f"""<ir_version: 10, opset_import: ["" : 18]>
            network (float[batch, 3, {size[0]}, {size[1]}] images) => (float[batch, n] logits) {{
                scale = Constant<value = float {{0.1}}>()
                scaled = Mul(images, scale)
                logits = Flatten(scaled)
            }}"""
        )
        network = onnx_preprocessing.with_preprocessing(network, description)
        session = onnxruntime.InferenceSession(network.SerializeToString())
        graph = onnx_preprocessing.of_graph(description)
        paths = student_images.find_images(photos)
        expected, decoded = StudentImages(paths, description), StudentImages(paths, graph)
        for index, path in enumerate(paths):
            image = expected.normalise(expected.read(index)[None]).flatten(1) / 10
            (found,) = session.run(None, {'images': decoded.read(index)[None].numpy()})
            off = (torch.from_numpy(found).log() - image.log_softmax(1)) * 10 * 59  # grey levels
            off = (off - off.median()).abs()
            assert off.max() < 3.5 and off.mean() < 0.25, path

    def test_predicts_as_the_validation(self, raw, run, photos):
        for result in predict(raw, photos, top_k=10):
            expected = in_validation(run[1], CONFIG, result)
            numbers = [CLASSES.index(name) for name in result.classes]
            assert_close(torch.tensor(result.probabilities), expected[numbers], atol=0.01, rtol=0)

    def test_takes_batches_of_any_size(self, raw, run, photos):
        session = onnxruntime.InferenceSession(raw)
        (images,), (output,) = session.get_inputs(), session.get_outputs()
        assert (images.name, images.type) == ('images', 'tensor(uint8)')
        assert images.shape == ['batch', 'height', 'width', 3]
        assert output.name == 'probabilities'
        image = numpy.array(Image.open(photos / 'rotated.jpg'))
        batch = numpy.stack([image, image[::-1], image[:, ::-1]])
        together = session.run(None, {'images': batch})[0]
        for number in range(3):
            alone = session.run(None, {'images': batch[number : number + 1]})[0]
            numpy.testing.assert_allclose(together[number], alone[0], atol=1e-5)

    def test_code_of_the_card(self, raw, run, photos, tmp_path, monkeypatch):
        card = raw.with_suffix('.md').read_text()
        assert 'mldr-kd predict raw.onnx IMAGES' in card and 'float32' not in card
        (code,) = re.findall('```python\n(.*?)```', card, re.DOTALL)
        shutil.copy(photos / 'rotated.jpg', tmp_path / 'image.jpg')
        shutil.copy(raw, tmp_path)
        monkeypatch.chdir(tmp_path)
        names = {}
        exec(code, names)
        (result,) = predict('raw.onnx', 'image.jpg')
        assert names['probabilities'].max() == pytest.approx(result.probabilities[0], abs=0.01)

    @pytest.mark.parametrize(
        ('steps', 'message'),
        [
            (
                [dict(type='Resize', scale=32, backend='pillow', interpolation='lanczos')],
                'onnx_preprocessing=True: ONNX has no lanczos resizing; export without it',
            ),
            (
                [dict(type='Invert', prob=1.0), dict(type='Resize', scale=32)],
                'onnx_preprocessing=True: the validation does more than resize an image and crop',
            ),
        ],
    )
    def test_what_onnx_cannot_do(self, steps, message, tmp_path):
        student = timm('test_resnet', data_preprocessor=STATISTICS)
        checkpoint, _ = save_run(tmp_path, student, **validation(*steps))
        with pytest.raises(ConfigError, match=message):
            export_student(checkpoint, str(tmp_path / 'a/b'), onnx_preprocessing=True)
        assert not (tmp_path / 'a').exists()

    @pytest.mark.parametrize('difference', [0.03, float('nan')])
    def test_a_graph_that_differs_is_not_written(self, difference, raw, run, tmp_path, monkeypatch):
        monkeypatch.setattr(export, '_write_graphs', lambda *_: ({'.onnx': ''}, []))
        monkeypatch.setattr(export, 'with_preprocessing', lambda *_: onnx.load(raw))
        monkeypatch.setattr(export, 'largest_difference', lambda *_: difference)
        monkeypatch.setattr(onnx, 'load', lambda path, load=onnx.load: load(raw))
        message = r'a\.onnx: .* first class differs by .*, more than 0\.02; nothing was written'
        with pytest.raises(export.ExportError, match=message):
            export_student(
                str(run[0] / 'run.pth'), str(tmp_path / 'b/a.onnx'), onnx_preprocessing=True
            )
        assert not list((tmp_path / 'b').iterdir())

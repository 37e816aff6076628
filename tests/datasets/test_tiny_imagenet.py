"""Tiny-ImageNet on artificial data in the official layout, and on real images if present.

The data configs of Tiny-ImageNet and ImageNet are tested here as well.
"""

from __future__ import annotations

import io
import shutil
import struct
import zipfile
import zlib
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from mmcv.transforms import LoadImageFromFile
from mmengine.config import Config
from mmengine.runner import Runner
from PIL import Image
from torch.utils.data import DataLoader

from mldr_kd_mm.datasets import TinyImageNet, tiny_imagenet
from mldr_kd_mm.registry import DATASETS, MODELS, TRANSFORMS
from mldr_kd_mm.utils.errors import ConfigError

PROJECT = Path(__file__).resolve().parents[2]
BASES = PROJECT / 'configs' / '_base_' / 'datasets'
SAMPLE = PROJECT.parent / 'shared' / 'data' / 'tiny-imagenet-200-sample.zip'

WNIDS = [f'n{i * 7919:08d}' for i in range(200)]
FIRST, SECOND = WNIDS[:2]
RED, GREY = (200, 40, 20), 128


def jpeg(colour: tuple[int, int, int] | int) -> bytes:
    """Return a 64 px image of one colour; it is grey if the colour is a number."""
    file = io.BytesIO()
    mode = 'L' if isinstance(colour, int) else 'RGB'
    Image.new(mode, (64, 64), colour).save(file, 'JPEG', quality=95)
    return file.getvalue()


COLOURED, GREYSCALE = jpeg(RED), jpeg(GREY)


def make_set(root: Path) -> Path:
    """Write a data set with 2 training images and 1 validation image per class; return its root.

    The first image of each class is grey. The numbers of the training images, 2 and 10, sort
    differently as text.
    """
    folder = root / 'tiny-imagenet-200'
    for wnid in WNIDS:
        images = folder / 'train' / wnid / 'images'
        images.mkdir(parents=True)
        (images / f'{wnid}_2.JPEG').write_bytes(GREYSCALE)
        (images / f'{wnid}_10.JPEG').write_bytes(COLOURED)
        (images.parent / f'{wnid}_boxes.txt').write_text(f'{wnid}_2.JPEG\t0\t0\t63\t63\n')
    images = folder / 'val' / 'images'
    images.mkdir(parents=True)
    lines = []
    for i, wnid in enumerate(reversed(WNIDS)):
        (images / f'val_{i}.JPEG').write_bytes(COLOURED)
        lines.append(f'val_{i}.JPEG\t{wnid}\t0\t0\t63\t63\n')
    (folder / 'val' / 'val_annotations.txt').write_text(''.join(lines))
    # Both files are unordered, and words.txt has more ids than there are classes.
    (folder / 'wnids.txt').write_text(''.join(f'{wnid}\n' for wnid in reversed(WNIDS)))
    words = [f'{wnid}\tname of {wnid}, other name\n' for wnid in ['n99999999', *reversed(WNIDS)]]
    (folder / 'words.txt').write_text(''.join(words))
    return root


@pytest.fixture(scope='module')
def whole(tmp_path_factory) -> Path:
    """Return the root of a data set that tests must not change."""
    return make_set(tmp_path_factory.mktemp('whole'))


@pytest.fixture
def broken(tmp_path) -> Path:
    """Return the root of a data set that a test may damage."""
    return make_set(tmp_path / 'broken')


def load(root: Path, split: str = 'train', **kwargs) -> TinyImageNet:
    return TinyImageNet(data_root=str(root), split=split, **{'verify': False, **kwargs})


def test_training_images_and_their_numbers(whole):
    dataset = load(whole)
    assert len(dataset) == 400
    assert dataset.get_gt_labels().tolist() == np.repeat(np.arange(200), 2).tolist()
    folder = whole / 'tiny-imagenet-200' / 'train'
    expected = [f'{folder}/{wnid}/images/{wnid}_{i}.JPEG' for wnid in WNIDS for i in (2, 10)]
    assert [info['img_path'] for info in dataset] == expected
    assert type(dataset[0]['gt_label']) is int


def test_validation_images_and_their_numbers(whole):
    dataset = load(whole, 'val')
    assert dataset.get_gt_labels().tolist() == list(reversed(range(200)))
    folder = whole / 'tiny-imagenet-200' / 'val' / 'images'
    assert [info['img_path'] for info in dataset] == [f'{folder}/val_{i}.JPEG' for i in range(200)]


def test_classes_are_numbered_as_by_image_folder(whole):
    folders = pytest.importorskip('torchvision.datasets').ImageFolder
    theirs = folders(str(whole / 'tiny-imagenet-200' / 'train'))
    ours = load(whole)
    for split in ('train', 'val'):
        expected = tuple(f'name of {wnid}, other name' for wnid in theirs.classes)
        assert load(whole, split).metainfo['classes'] == expected
    assert sorted(theirs.samples) == sorted((i['img_path'], i['gt_label']) for i in ours)


def test_other_names_can_be_given(whole):
    names = [str(i) for i in range(200)]
    assert load(whole, classes=names, subset=dict(labels=[3, 1])).CLASSES == ('3', '1')


def test_other_files_are_not_images(broken):
    folder = broken / 'tiny-imagenet-200' / 'train' / FIRST / 'images'
    for name in ('.DS_Store', f'._{FIRST}_2.JPEG', 'Thumbs.db', f'{FIRST}_3.JPEG.part'):
        (folder / name).write_text('')
    (folder / f'{FIRST}_4.JPEG').mkdir()
    assert len(load(broken)) == 400


def test_files_with_windows_line_ends(broken):
    expected = [list(load(broken, split)) for split in ('train', 'val')]
    for path in (broken / 'tiny-imagenet-200').rglob('*.txt'):
        path.write_bytes(path.read_bytes().replace(b'\n', b'\r\n') + b'\r\n')
    assert [list(load(broken, split)) for split in ('train', 'val')] == expected
    assert load(broken).CLASSES[0] == f'name of {FIRST}, other name'


@pytest.mark.parametrize(('split', 'official'), [('train', 500), ('val', 50)])
def test_official_counts(whole, monkeypatch, split, official):
    count = 2 if split == 'train' else 1
    with pytest.raises(ConfigError) as caught:
        TinyImageNet(data_root=str(whole), split=split)
    message = str(caught.value)
    assert '\n' not in message
    assert str(whole / 'tiny-imagenet-200' / split) in message
    assert f'has {count} images of class {FIRST}, must have {official}; unpack http' in message
    assert 'verify=False' in message

    monkeypatch.setitem(tiny_imagenet.IMAGES_PER_CLASS, split, count)
    assert len(TinyImageNet(data_root=str(whole), split=split)) == count * 200


def test_subset(whole, split='train'):
    labels = [40, 7, 199]
    dataset = load(whole, split, subset=dict(labels=labels, per_class=1))
    everything = load(whole, split)
    assert dataset.CLASSES == tuple(everything.CLASSES[label] for label in labels)
    assert sorted(dataset.get_gt_labels()) == [0, 1, 2]
    paths = [info['img_path'] for info in everything]
    for info in dataset:
        # The image with the lowest number.
        first = everything.get_gt_labels().tolist().index(labels[info['gt_label']])
        assert info['img_path'] == paths[first]


@pytest.mark.parametrize(
    ('keywords', 'message'),
    [
        (dict(split='test'), "split='test': the official test split has no labels, use 'val'"),
        (dict(split='valid'), "split='valid': must be 'train' or 'val'"),
        (dict(data_root=''), "data_root='': must be the directory that holds tiny-imagenet-200/"),
    ],
)
def test_refuses(keywords, message):
    with pytest.raises(ConfigError, match=message):
        TinyImageNet(**{'data_root': 'anywhere', **keywords})


def test_refuses_the_directory_itself(whole):
    root = whole / 'tiny-imagenet-200'
    with pytest.raises(
        ConfigError, match='holds wnids.txt; must be its parent directory'
    ) as caught:
        load(root)
    assert f'data_root={str(root)!r}' in str(caught.value)
    assert '\n' not in str(caught.value)


def test_missing_set_names_the_address(tmp_path):
    with pytest.raises(ConfigError, match='lacks tiny-imagenet-200/wnids.txt; unpack') as caught:
        load(tmp_path)
    assert f'data_root={str(tmp_path)!r}' in str(caught.value)
    assert 'http://cs231n.stanford.edu/tiny-imagenet-200.zip' in str(caught.value)
    assert list(tmp_path.iterdir()) == []


def edit(name: str, change: Callable[[list[str]], list[str]]) -> Callable[[Path], None]:
    """Return a function that changes the lines of a file of the data set."""

    def apply(folder: Path) -> None:
        lines = (folder / name).read_text().splitlines()
        (folder / name).write_text('\n'.join(change(lines)) + '\n')

    return apply


def remove(name: str) -> Callable[[Path], None]:
    """Return a function that removes a file or directory of the data set."""

    def apply(folder: Path) -> None:
        path = folder / name
        shutil.rmtree(path) if path.is_dir() else path.unlink()

    return apply


def empty(folder: Path) -> None:
    for path in (folder / 'train' / SECOND / 'images').iterdir():
        path.unlink()


def by_class(folder: Path) -> None:
    """Move validation images into one folder per class, as scripts for ImageFolder do."""
    for i, wnid in enumerate(reversed(WNIDS)):
        (folder / 'val' / wnid).mkdir()
        (folder / 'val' / 'images' / f'val_{i}.JPEG').rename(folder / 'val' / wnid / 'val.JPEG')
    (folder / 'val' / 'images').rmdir()


def binary(folder: Path) -> None:
    (folder / 'words.txt').write_bytes(GREYSCALE)


def beyond(name: str) -> Callable[[Path], None]:
    """Return a function that annotates an existing image outside the folder."""

    def apply(folder: Path) -> None:
        (folder.parent / 'outside.JPEG').write_bytes(COLOURED)
        path = name.format(folder.parent)
        edit('val/val_annotations.txt', lambda lines: [*lines, f'{path}\t{FIRST}\t0'])(folder)

    return apply


ANNOTATIONS = 'val/val_annotations.txt'


@pytest.mark.parametrize(
    ('split', 'damage', 'path', 'message'),
    [
        ('val', remove('wnids.txt'), '', 'lacks tiny-imagenet-200/wnids.txt'),
        ('val', edit('wnids.txt', lambda x: x[:-1]), 'wnids.txt', 'holds 199 ids, must hold 200'),
        ('val', edit('wnids.txt', lambda x: []), 'wnids.txt', 'holds 0 ids'),
        (
            'val',
            edit('wnids.txt', lambda x: [*x, 'n99999999']),
            'wnids.txt',
            'holds 201 ids, must hold 200',
        ),
        ('val', edit('wnids.txt', lambda x: [*x, x[0]]), 'wnids.txt', 'line 201 repeats'),
        (
            'train',
            edit('wnids.txt', lambda x: [*x[:-1], '../../x']),
            'wnids.txt',
            "holds '../../x'; must hold WordNet ids",
        ),
        ('val', remove('words.txt'), 'words.txt', 'cannot be read'),
        ('val', binary, 'words.txt', 'cannot be read'),
        ('val', edit('words.txt', lambda x: x[:-1]), 'words.txt', f'has no line for {FIRST}'),
        ('val', edit('words.txt', lambda x: [*x, x[0]]), 'words.txt', 'line 202 repeats'),
        (
            'val',
            edit('words.txt', lambda x: [FIRST, *x[1:]]),
            'words.txt',
            f"line 1 is '{FIRST}', must have 2 or more columns",
        ),
        ('train', remove('train'), f'train/{FIRST}/images', 'cannot be listed'),
        ('train', remove(f'train/{SECOND}'), f'train/{SECOND}/images', 'cannot be listed'),
        ('train', empty, 'train', f'has no image of class {SECOND}'),
        ('val', remove('val'), 'val/images', 'cannot be listed'),
        ('val', by_class, 'val/images', 'cannot be listed'),
        ('val', remove(ANNOTATIONS), ANNOTATIONS, 'cannot be read'),
        ('val', remove('val/images/val_7.JPEG'), ANNOTATIONS, "names 'val_7.JPEG'.* 199 images in"),
        (
            'val',
            edit(ANNOTATIONS, lambda x: [*x, 'val_999.JPEG\tn0']),
            ANNOTATIONS,
            "gives 'val_999.JPEG' the class 'n0', which is not in wnids.txt",
        ),
        ('val', edit(ANNOTATIONS, lambda x: [*x, 'val_9']), ANNOTATIONS, "line 201 is 'val_9'"),
        ('val', edit(ANNOTATIONS, lambda x: [*x, x[0]]), ANNOTATIONS, 'line 201 repeats'),
        ('val', edit(ANNOTATIONS, lambda x: x[:-1]), 'val', f'has no image of class {FIRST}'),
        ('val', edit(ANNOTATIONS, lambda x: []), 'val', f'has no image of class {FIRST}'),
        ('val', beyond('../../../outside.JPEG'), ANNOTATIONS, "names '../../../outside.JPEG'"),
        ('val', beyond('{}/outside.JPEG'), ANNOTATIONS, "names '/.*/outside.JPEG'"),
    ],
)
def test_refuses_a_tree_that_is_not_whole(broken, monkeypatch, split, damage, path, message):
    monkeypatch.setattr(tiny_imagenet, 'IMAGES_PER_CLASS', {'train': 2, 'val': 1})
    damage(broken / 'tiny-imagenet-200')
    with pytest.raises(ConfigError, match=message) as caught:
        load(broken, split, verify=False)
    text = str(caught.value)
    assert '\n' not in text
    assert (str(broken / 'tiny-imagenet-200' / path) if path else str(broken)) in text
    assert 'unpack http' in text or 'WordNet ids' in text


@pytest.mark.parametrize('backend', ['cv2', 'pillow'])
def test_grey_images_have_three_channels(whole, backend):
    dataset = load(whole, pipeline=[LoadImageFromFile(imdecode_backend=backend)])
    grey, coloured = dataset[0]['img'], dataset[1]['img']
    for image, colour in ((grey, (GREY,) * 3), (coloured, RED[::-1])):
        assert image.shape == (64, 64, 3)
        assert image.dtype == np.uint8
        assert np.abs(image.astype(int) - colour).max() <= 2


def bomb() -> bytes:
    """Return a PNG file whose header claims 1.6 billion pixels."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        return (
            struct.pack('>I', len(data)) + kind + data + struct.pack('>I', zlib.crc32(kind + data))
        )

    header = struct.pack('>IIBBBBB', 40_000, 40_000, 1, 0, 0, 0, 0)
    rows = zlib.compress(bytes(5001) * 10)
    chunks = (chunk(b'IHDR', header), chunk(b'IDAT', rows), chunk(b'IEND', b''))
    return b'\x89PNG\r\n\x1a\n' + b''.join(chunks)


def test_an_image_that_is_none(broken):
    path = broken / f'tiny-imagenet-200/train/{FIRST}/images/{FIRST}_2.JPEG'
    dataset = load(broken, pipeline=[dict(type='LoadImageFromFile'), dict(type='PackInputs')])
    message = rf'{path}: cannot be read as an image \(.*\); unpack'
    half = COLOURED[: len(COLOURED) // 2]
    for content in (half, COLOURED[:-2], b'', b'text', bomb()):
        path.write_bytes(content)
        with pytest.raises(ConfigError, match=message) as caught:
            dataset[0]
        assert str(caught.value).isprintable()
    with pytest.raises(ConfigError, match=message):
        next(iter(DataLoader(dataset, num_workers=1, collate_fn=list)))


def test_a_step_that_fails_is_not_blamed_on_the_image(whole):
    dataset = load(whole, pipeline=[dict(type='LoadImageFromFile'), dict(type='Fails')])
    with pytest.raises(RuntimeError, match='^not the image$'):
        dataset[0]


@TRANSFORMS.register_module()
class Fails:
    def __call__(self, results: dict) -> dict:
        raise RuntimeError('not the image')


def write_imagenet(root: Path) -> Path:
    """Write two images per split, larger than 224 px, in ImageNet's layout with lists."""
    for split in ('train', 'val'):
        (root / split).mkdir(parents=True)
        (root / 'meta').mkdir(exist_ok=True)
        for name, colour in (('grey', GREY), ('red', RED)):
            mode = 'L' if name == 'grey' else 'RGB'
            Image.new(mode, (500, 375), colour).save(root / split / f'{name}.JPEG')
        (root / 'meta' / f'{split}.txt').write_text('grey.JPEG 0\nred.JPEG 999\n')
    return root


@pytest.fixture(scope='module')
def imagenet(tmp_path_factory) -> Path:
    return write_imagenet(tmp_path_factory.mktemp('imagenet'))


def load_base(name: str, whole: Path, imagenet: Path) -> Config:
    """Return a base config that reads the artificial data sets."""
    cfg = Config.fromfile(BASES / f'{name}.py')
    for loader in (cfg.train_dataloader, cfg.val_dataloader, cfg.test_dataloader):
        loader.num_workers = 0
        if name.startswith('tiny'):
            loader.dataset.update(data_root=str(whole), verify=False)
        else:
            loader.dataset.data_root = str(imagenet)
    return cfg


@pytest.mark.parametrize(
    ('name', 'size', 'num_classes'),
    [
        ('tiny-imagenet_64', 64, 200),
        ('tiny-imagenet_64_strong', 64, 200),
        ('tiny-imagenet_224', 224, 200),
        ('tiny-imagenet_224_strong', 224, 200),
        ('imagenet_224', 224, 1000),
        ('imagenet_224_strong', 224, 1000),
    ],
)
def test_bases(name, size, num_classes, whole, imagenet):
    cfg = load_base(name, whole, imagenet)
    assert cfg.data_preprocessor.num_classes == num_classes
    assert cfg.test_dataloader == cfg.val_dataloader
    augmented = [step['type'] for step in cfg.train_dataloader.dataset.pipeline]
    assert ('RandAugment' in augmented) == ('RandomErasing' in augmented) == ('strong' in name)
    for loader, split in ((cfg.train_dataloader, 'train'), (cfg.val_dataloader, 'val')):
        dataset = DATASETS.build(loader.dataset)
        assert loader.dataset.split == split
        assert len(dataset.CLASSES) == num_classes
        for item in (dataset[0], dataset[1]):
            assert item['inputs'].shape == (3, size, size)
            assert item['inputs'].dtype == torch.uint8
    assert int(dataset[len(dataset) - 1]['data_samples'].gt_label) in (0, 999)


@pytest.mark.parametrize('name', ['tiny-imagenet_224', 'imagenet_224'])
def test_images_reach_the_model_in_the_order_of_the_statistics(name, whole, imagenet):
    cfg = load_base(name, whole, imagenet)
    preprocessor = MODELS.build(cfg.data_preprocessor)
    item = DATASETS.build(cfg.val_dataloader.dataset)[1]
    image = preprocessor(dict(inputs=[item['inputs']]))['inputs'][0]
    mean, std = cfg.data_preprocessor.mean, cfg.data_preprocessor.std
    for channel, value in enumerate(RED):
        expected = (value - mean[channel]) / std[channel]
        assert (image[channel] - expected).abs().max() < 0.06


def test_the_runner_feeds_it_from_worker_processes(whole, imagenet):
    cfg = load_base('tiny-imagenet_64', whole, imagenet)
    cfg.train_dataloader.update(num_workers=2, batch_size=50)
    loader = Runner.build_dataloader(cfg.train_dataloader, seed=0)
    labels = []
    for batch in loader:
        assert {tuple(image.shape) for image in batch['inputs']} == {(3, 64, 64)}
        labels += [int(sample.gt_label) for sample in batch['data_samples']]
    assert sorted(labels) == np.repeat(np.arange(200), 2).tolist()


@pytest.mark.skipif(
    not SAMPLE.exists(),
    reason='needs the sample of Tiny-ImageNet in ../shared/data, which is not part of the project',
)
def test_the_real_images(tmp_path):
    with zipfile.ZipFile(SAMPLE) as archive:
        archive.extractall(tmp_path)
    with pytest.raises(ConfigError, match='has 50 images of class n01443537, must have 500'):
        TinyImageNet(data_root=str(tmp_path))
    for split, per_class in (('train', 50), ('val', 10)):
        dataset = load(tmp_path, split)
        assert np.bincount(dataset.get_gt_labels()).tolist() == [per_class] * 200
        assert dataset.CLASSES[0] == 'goldfish, Carassius auratus'

    dataset = load(tmp_path, pipeline=[dict(type='LoadImageFromFile')])
    images = np.stack([dataset[i]['img'][..., ::-1] for i in range(0, len(dataset), 5)]) / 255
    assert images.shape == (2000, 64, 64, 3)
    cfg = Config.fromfile(BASES / 'tiny-imagenet_64.py').data_preprocessor
    np.testing.assert_allclose(images.mean((0, 1, 2)), np.array(cfg.mean) / 255, atol=0.01)
    np.testing.assert_allclose(images.std((0, 1, 2)), np.array(cfg.std) / 255, atol=0.01)

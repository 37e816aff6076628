"""Image folders with one subfolder per class."""

import io
import shutil
import struct
import zlib
from pathlib import Path

import pytest
from helpers import image_folder
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from mldr_kd_mm.datasets import ImageFolder
from mldr_kd_mm.utils.errors import ConfigError

READ = [dict(type='LoadImageFromFile')]


def paths(dataset):
    return [dataset.get_data_info(i)['img_path'] for i in range(len(dataset))]


def read(root, split='train', **kwargs):
    # mmengine runs the garbage collector for a serialised data set.
    return ImageFolder(str(root), split, pipeline=READ, serialize_data=False, **kwargs)


@pytest.mark.parametrize('val', ['val', 'test'])
def test_both_splits_are_there(tmp_path, val):
    root = image_folder(tmp_path, {'train': 3, val: 2})

    train, held_out = read(root), read(root, 'val')

    assert (len(train), len(held_out)) == (9, 6)
    assert train.CLASSES == held_out.CLASSES == ('a', 'b', 'c')
    assert all(Path(path).parts[-3] == val for path in paths(held_out))
    info = held_out[5]
    assert info['gt_label'] == 2
    assert info['img'].shape == (36, 44, 3)
    assert info['img'].mean((0, 1)).argmax() == 0  # the third class is blue, images are BGR


def test_val_goes_before_test(tmp_path):
    root = image_folder(tmp_path, {'train': 3, 'val': 1, 'test': 2})
    assert len(read(root, 'val')) == 3


@pytest.mark.parametrize('folder', ['', 'train'])
def test_a_part_is_held_out(tmp_path, folder):
    root = image_folder(tmp_path, {folder: 10})

    train, held_out = (read(root, split, val_fraction=0.3) for split in ('train', 'val'))

    assert not set(paths(held_out)) & set(paths(train))
    assert len(set(paths(train)) | set(paths(held_out))) == 30
    infos = [held_out.get_data_info(index) for index in range(len(held_out))]
    assert [info['gt_label'] for info in infos] == sorted(info['gt_label'] for info in infos)
    for label, name in enumerate('abc'):
        of_class = [info['img_path'] for info in infos if info['gt_label'] == label]
        assert 1 <= len(of_class) <= 6
        assert all(Path(path).parts[-2] == name for path in of_class)
    assert paths(held_out) == paths(read(root, 'val', val_fraction=0.3))
    assert paths(held_out) != paths(read(root, 'val', val_fraction=0.3, seed=1))


def test_the_choice_does_not_depend_on_the_place(tmp_path):
    root = image_folder(tmp_path / 'here', {'': 10})
    shutil.copytree(root, tmp_path / 'there')
    here, there = (
        [Path(path).relative_to(tmp_path / place) for path in paths(read(tmp_path / place, 'val'))]
        for place in ('here', 'there')
    )
    assert here == there


@settings(max_examples=10, deadline=None)
@given(count=st.integers(2, 12), fraction=st.floats(0.01, 0.99), seed=st.integers(0, 9))
def test_no_image_is_lost_or_in_both(tmp_path_factory, count, fraction, seed):
    root = tmp_path_factory.mktemp('images')
    for name in ('a', 'b'):
        (root / name).mkdir()
        for number in range(count):
            (root / name / f'{number}.jpg').touch()
    splits = [
        paths(read(root, split, val_fraction=fraction, seed=seed)) for split in ('train', 'val')
    ]
    assert all(splits)
    assert len(splits[0]) + len(splits[1]) == len({*splits[0], *splits[1]}) == 2 * count


def test_what_is_no_image_is_left_out(tmp_path):
    root = image_folder(tmp_path, {'train': 2, 'val': 1})
    (root / 'train/.cache').mkdir()
    (root / 'train/a/notes.txt').touch()
    (root / 'train/a/.hidden.png').touch()
    (root / 'train/a/more').mkdir()
    (root / 'train/a/0.png').rename(root / 'train/a/more/0.PNG')
    assert len(read(root)) == 6


def empty(root):
    root.mkdir(exist_ok=True)


def one_class(root):
    image_folder(root, {'': 3}, classes='a')


def empty_class(root):
    image_folder(root, {'': 3})
    (root / 'void').mkdir()


def other_classes(root):
    image_folder(root, {'train': 2, 'val': 1})
    (root / 'val/b').rename(root / 'val/bb')


def single(root):
    image_folder(root, {'': 1})


def two_images(root):
    image_folder(root, {'': 2})


def test_order_of_the_classes(tmp_path):
    """A teacher may have its own."""
    root = image_folder(tmp_path, {'train': 1, 'val': 1})
    found = read(root, classes=['c', 'a', 'b'])
    assert found.CLASSES == ('c', 'a', 'b')
    names = [found.CLASSES[found.get_data_info(i)['gt_label']] for i in range(3)]
    assert names == [Path(path).parent.name for path in paths(found)]


@pytest.mark.parametrize(
    ('prepare', 'arguments', 'message'),
    [
        (lambda root: None, {}, 'there is no such folder'),
        (empty, {}, 'there are no images in'),
        (one_class, {}, "has one class, 'a'"),
        (empty_class, {}, "void' holds no images"),
        (other_classes, {}, "val' lacks 'b'|train' lacks 'bb'"),
        (single, {}, "class 'a' has 1 image, too few"),
        (empty, dict(split='test'), "split='test': must be"),
        (empty, dict(val_fraction=1), 'val_fraction=1: must be'),
        (two_images, dict(classes=['a', 'b']), r"classes=\('a', 'b'\): must be the names of the"),
        (two_images, dict(metainfo=dict(classes=['A', 'B', 'C'])), "any order: 'a', 'b', 'c'"),
        (two_images, dict(data_prefix='train'), "data_prefix='train': must be left out"),
        (two_images, dict(filter_cfg=dict(a=1)), "filter_cfg={'a': 1}: must be left out"),
    ],
)
def test_mistakes(tmp_path, prepare, arguments, message):
    root = tmp_path / 'images'
    prepare(root)
    with pytest.raises(ConfigError, match=message):
        read(root, **arguments)


def test_an_image_that_cannot_be_read_is_named(tmp_path):
    root = image_folder(tmp_path, {'train': 2, 'val': 1})
    (root / 'train/a/1.png').write_bytes(b'no image')
    with pytest.raises(ConfigError, match=r'a/1.png: cannot be read as an image'):
        read(root)[1]


def large(kind: str, width: int, height: int) -> bytes:
    """Return an image of one pixel whose header has another size."""
    buffer = io.BytesIO()
    Image.new('L', (1, 1)).save(buffer, kind)
    content = bytearray(buffer.getvalue())
    if kind == 'png':
        content[16:24] = struct.pack('>2L', width, height)
        content[29:33] = struct.pack('>L', zlib.crc32(content[12:29]))
    elif kind == 'bmp':
        content[18:26] = struct.pack('<2l', width, height)
    elif kind == 'gif':
        content[6:10] = struct.pack('<2H', width, height)
    else:
        start = content.index(b'\xff\xc0') + 5
        content[start : start + 4] = struct.pack('>2H', height, width)
    return bytes(content)


class TestLargeImages:
    @pytest.fixture
    def root(self, tmp_path) -> Path:
        return image_folder(tmp_path, {'train': 2, 'val': 1})

    @pytest.mark.parametrize('kind', ['png', 'bmp', 'gif', 'jpeg'])
    def test_a_bomb_is_not_decoded(self, root, kind, monkeypatch):
        (root / 'train/a/1.png').write_bytes(large(kind, 40_000, 25_000))
        monkeypatch.setattr('mmcv.imfrombytes', None)
        message = (
            r'a/1.png: cannot be read as an image \(it has 1000000000 pixels, must have at most '
            r'178956970\); replace or remove it, or set max_pixels=1000000000 for the data set$'
        )
        with pytest.raises(ConfigError, match=message):
            read(root)[1]

    def test_a_photograph_of_100_million_pixels_passes(self, root):
        """The file is not a whole image, but its size is accepted."""
        (root / 'train/a/1.png').write_bytes(large('png', 12_000, 9_000))
        with pytest.raises(ConfigError, match=r'cannot be read as an image \(it is damaged\)'):
            read(root)[1]

    @pytest.mark.parametrize('max_pixels', [300_000, None])
    def test_the_limit_can_be_set(self, root, max_pixels):
        Image.new('RGB', (1000, 300)).save(root / 'train/a/1.png')
        with pytest.raises(ConfigError, match='it has 300000 pixels, must have at most 299999'):
            read(root, max_pixels=299_999)[1]
        assert read(root, max_pixels=max_pixels)[1]['img'].shape == (300, 1000, 3)

    @pytest.mark.parametrize('max_pixels', [0, 1.5, '1'])
    def test_refuses(self, root, max_pixels):
        with pytest.raises(ConfigError, match='max_pixels=.*: must be a positive integer'):
            read(root, max_pixels=max_pixels)

"""Image folders with one subfolder per class."""

import shutil
from pathlib import Path

import pytest
from helpers import image_folder
from hypothesis import given, settings
from hypothesis import strategies as st

from mldr_kd_mm.datasets import ImageFolder
from mldr_kd_mm.utils.errors import ConfigError

READ = [dict(type='LoadImageFromFile')]


def paths(dataset):
    return [dataset.get_data_info(i)['img_path'] for i in range(len(dataset))]


def read(root, split='train', **kwargs):
    return ImageFolder(str(root), split, pipeline=READ, **kwargs)


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

    assert [paths(held_out).count(path) for path in paths(train)] == [0] * 21
    assert len(set(paths(train)) | set(paths(held_out))) == 30
    assert [info['gt_label'] for info in map(held_out.get_data_info, range(9))] == [
        label for label in range(3) for _ in range(3)
    ]
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
    try:
        splits = [
            paths(ImageFolder(str(root), split, val_fraction=fraction, seed=seed))
            for split in ('train', 'val')
        ]
    except ConfigError as error:
        assert 'too few' in str(error)
        assert round(count * fraction) >= count
        return
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

"""Identities and paths of samples."""

import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from helpers import image_folder
from mmengine.dataset import ConcatDataset, RepeatDataset
from mmpretrain.datasets import BaseDataset
from torch.utils.data import ConcatDataset as Concatenated
from torch.utils.data import Subset, TensorDataset

from mldr_kd_mm.datasets import Digits, ImageFolder, MixedDataset, UnlabeledFolder, held_out_part
from mldr_kd_mm.datasets.samples import has_links, hash_samples, iter_parts, real_paths


class Listed(BaseDataset):
    """A data set of the given samples, one dict each."""

    def __init__(self, *samples):
        self.samples = samples
        super().__init__(ann_file='')

    def load_data_list(self):
        return [dict(sample) for sample in self.samples]


def of_paths(*paths):
    return Listed(*(dict(img_path=path) for path in paths))


@pytest.fixture
def root(tmp_path):
    """Return labelled images in ``photos`` and unlabelled ones in ``more``."""
    image_folder(tmp_path / 'root/photos', {'train': 3, 'val': 1})
    return image_folder(tmp_path / 'root/more', {'': 2}).parent


def mixed(root):
    labeled = ImageFolder(str(root / 'photos'), serialize_data=False)
    return MixedDataset(labeled, UnlabeledFolder(str(root / 'more'), serialize_data=False))


class TestHash:
    def test_of_paths(self):
        known = hash_samples(of_paths('/data/a/1.png', '/data/a/2.png', '/data/b/1.png'))
        assert known == hash_samples(of_paths('x/y/a/1.png', 'x/y/a/2.png', 'x/y/b/1.png'))
        for other in (
            ('/data/a/2.png', '/data/a/1.png', '/data/b/1.png'),
            ('/data/a/1.png', '/data/a/2.png', '/data/b/2.png'),
            ('/data/a/1.png', '/data/a/2.png'),
            ('/data/a/1.png', '/data/a/2.png', '/data/b', '/data/1.png'),
        ):
            assert hash_samples(of_paths(*other)) != known

    def test_of_pixels(self):
        """Also of a part of an array, whose order counts."""
        known = hash_samples(Digits('test', 8))
        assert known == hash_samples(Digits('test', 8))
        assert known != hash_samples(Digits('test', 8, dict(labels=[0])))
        ones, twos = (dict(img=np.full((2, 2, 3), value, np.uint8)) for value in (1, 2))
        assert hash_samples(Listed(ones, twos)) != hash_samples(Listed(twos, ones))

    @pytest.mark.parametrize('wrap', [lambda data: data, lambda data: Subset(data, range(9))])
    def test_of_a_mix(self, root, tmp_path, wrap):
        known = hash_samples(wrap(mixed(root)))
        moved = shutil.copytree(root, tmp_path / 'elsewhere/moved')
        shutil.move(moved / 'more', tmp_path / 'more')
        (moved / 'more').symlink_to(tmp_path / 'more')
        assert hash_samples(wrap(mixed(moved))) == known
        image = moved / 'more/a/0.png'
        image.rename(image.with_name('00.png'))  # still the first image
        assert hash_samples(wrap(mixed(moved))) != known

    def test_of_parts(self, root):
        """Other images of the same data set, as many as before."""
        part = dict(type='ImageFolder', data_root=str(root / 'photos'))
        one, two = (hash_samples(held_out_part(part, 0.34, seed)) for seed in (0, 1))
        data = of_paths('/a.png', '/b.png', '/c.png')
        three, four = (hash_samples(Subset(data, places)) for places in ([0, 1], [1, 0]))
        assert one != two and three != four
        assert three == hash_samples(Subset(data, np.array([0, 1])))

    def test_of_unknown_samples(self):
        tensors = TensorDataset(torch.zeros(2))
        for data in (tensors, Listed(dict(text='a')), ConcatDataset([of_paths('/a')] * 2)):
            assert (hash_samples(data) is None) is not isinstance(data, ConcatDataset)


class TestPaths:
    def test_links(self, root, tmp_path):
        """Links to a file, to a folder, and to the folder of the data."""
        link = tmp_path / 'link'
        link.symlink_to(root / 'photos')
        assert not has_links(str(link))
        (root / 'photos/val/b').rename(tmp_path / 'b')
        (root / 'photos/val/b').symlink_to(tmp_path / 'b')
        (root / 'photos/val/c/1.png').symlink_to(root / 'photos/train/c/2.png')
        assert has_links(str(link)) and not has_links(str(root / 'more'))
        photos = root.resolve() / 'photos'
        expected = {photos / 'val/a/0.png', Path(tmp_path / 'b/0.png').resolve()}
        expected |= {photos / 'val/c/0.png', photos / 'train/c/2.png'}
        data = ImageFolder(str(link), 'val', serialize_data=False)
        assert real_paths(data) == set(map(str, expected))

    def test_parts(self, root):
        data = mixed(root)
        several = Concatenated([RepeatDataset(data.datasets[0], 2), Subset(data, [0])])
        assert [*iter_parts(several)] == [data.datasets[0], *data.datasets]

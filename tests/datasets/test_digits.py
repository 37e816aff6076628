"""The digits and their fixed split."""

from __future__ import annotations

import hashlib
import sys

import numpy as np
import pytest
import torch
from mmengine.dataset import pseudo_collate
from torch.utils.data import DataLoader

from mldr_kd_mm.datasets import Digits
from mldr_kd_mm.utils.errors import ConfigError

sklearn_datasets = pytest.importorskip('sklearn.datasets', reason='needs scikit-learn')


def originals(dataset: Digits) -> list[bytes]:
    """Return the images of ``dataset`` at their original size, as bytes."""
    return [info['img'][..., 0].tobytes() for info in dataset]


def test_the_splits_divide_the_images():
    train, test = Digits('train', size=8), Digits('test', size=8)
    assert (len(train), len(test)) == (1200, 597)
    images, _ = sklearn_datasets.load_digits(return_X_y=True)
    expected = [np.rint(image * 255 / 16).astype(np.uint8).tobytes() for image in images]
    assert sorted(originals(train) + originals(test)) == sorted(expected)


def test_the_splits_are_stratified():
    _, labels = sklearn_datasets.load_digits(return_X_y=True)
    expected = np.bincount(labels) * 1200 / 1797
    counts = np.bincount(Digits('train').get_gt_labels())
    assert np.abs(counts - expected).max() < 1


def test_the_split_is_always_the_same():
    labels = Digits('test').get_gt_labels().tolist()
    assert labels == Digits('test').get_gt_labels().tolist()
    digest = hashlib.md5(bytes(labels)).hexdigest()
    assert digest == 'b0e0830ba4948ad76e5570ab9c76f6cd', (
        'results on another split do not compare with those reported'
    )


def test_labels_belong_to_their_images():
    images, labels = sklearn_datasets.load_digits(return_X_y=True)
    label_of = {
        np.rint(image * 255 / 16).astype(np.uint8).tobytes(): int(label)
        for image, label in zip(images, labels, strict=True)
    }
    dataset = Digits('test', size=8)
    expected = [label_of[image] for image in originals(dataset)]
    assert dataset.get_gt_labels().tolist() == expected


def test_images_are_enlarged_and_rgb(size=40):
    small, large = Digits('test', size=8), Digits('test', size=size)
    for before, after in zip(small, large, strict=True):
        image = after['img']
        assert image.shape == (size, size, 3)
        assert image.dtype == np.uint8
        assert (image == image[..., :1]).all()
        assert abs(image.mean() - before['img'].mean()) < 12
        assert type(after['gt_label']) is int
    assert max(info['img'].max() for info in large) > 240
    assert min(info['img'].min() for info in large) == 0


def test_bilinear_against_torch():
    small, large = Digits('test', size=8)[0]['img'], Digits('test', size=32)[0]['img']
    image = torch.from_numpy(small[..., 0].copy())[None, None].double()
    expected = torch.nn.functional.interpolate(image, size=32, mode='bilinear')[0, 0]
    assert (torch.from_numpy(large[..., 0].copy()) - expected).abs().max() <= 1


def test_subset():
    whole = Digits('train')
    dataset = Digits('train', subset=dict(labels=[7, 1], per_class=10))
    assert len(dataset) == 20
    assert dataset.metainfo['classes'] == ('7', '1')
    all_labels = whole.get_gt_labels()
    for new, old in enumerate([7, 1]):
        ours = [info['img'] for info in dataset if info['gt_label'] == new]
        first = [whole[i]['img'] for i in np.flatnonzero(all_labels == old)[:10]]
        np.testing.assert_array_equal(ours, first)


@pytest.mark.parametrize(
    ('keywords', 'message'),
    [
        (dict(split='val'), "split='val': must be 'train' or 'test'"),
        (dict(size=0), 'size=0: must be a positive integer'),
        (dict(size='32'), "size='32'"),
        (dict(subset=dict(per_class=1000)), r'class 0 \(0\) must have 1000 or more images'),
        (dict(subset=dict(labels=[10])), 'subset.labels holds 10; .* from 0 to 9'),
    ],
)
def test_refuses(keywords, message):
    with pytest.raises(ConfigError, match=message):
        Digits(**keywords)


def test_says_how_to_get_scikit_learn(monkeypatch):
    monkeypatch.setitem(sys.modules, 'sklearn', None)
    with pytest.raises(ConfigError, match='run pip install scikit-learn'):
        Digits()


def test_feeds_a_pipeline_in_worker_processes():
    pipeline = [dict(type='RandomCrop', crop_size=32, padding=2), dict(type='PackInputs')]
    dataset = Digits('test', pipeline=pipeline)
    assert 'Split: \ttest' in repr(dataset)
    loader = DataLoader(dataset, batch_size=200, num_workers=2, collate_fn=pseudo_collate)
    labels = []
    for batch in loader:
        assert {tuple(image.shape) for image in batch['inputs']} == {(3, 32, 32)}
        labels += [int(sample.gt_label) for sample in batch['data_samples']]
    assert labels == dataset.get_gt_labels().tolist()

"""Images without labels, alone and mixed with labelled ones."""

from __future__ import annotations

import os
import shutil
from fractions import Fraction

import pytest
from helpers import image_folder
from mmengine.dataset import DefaultSampler, RepeatDataset
from mmengine.registry import init_default_scope

from mldr_kd_mm import ConfigError
from mldr_kd_mm.datasets import ImageFolder, MixedDataset, MixedSampler, UnlabeledFolder
from mldr_kd_mm.engine.hooks.data_check import check_disjoint, check_unlabeled
from mldr_kd_mm.models.losses import KDLoss
from mldr_kd_mm.structures.label import is_unlabeled

PIPELINE = [dict(type='LoadImageFromFile'), dict(type='PackInputs')]


@pytest.fixture(scope='module')
def root(tmp_path_factory):
    """Return a folder with 3 x 4 labelled training images, 3 x 2 for validation, and 7 others."""
    init_default_scope('mldr_kd_mm')
    root = image_folder(tmp_path_factory.mktemp('images'), {'train': 4, 'val': 2})
    (source,) = root.glob('train/a/0.png')
    names = ('x.png', 'deep/er/y.PNG', 'deep/z.png', '1.png', '2.png', '3.png', '4.png')
    for name in names:
        path = root.parent / 'others' / root.name / name
        path.parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(source, path)
    return root


@pytest.fixture(scope='module')
def others(root):
    return root.parent / 'others' / root.name


def unlabeled(*args, **kwargs):
    return UnlabeledFolder(*map(str, args), pipeline=PIPELINE, serialize_data=False, **kwargs)


@pytest.fixture(scope='module')
def mixed(root, others):
    """Return 12 labelled images and 7 others."""
    labeled = dict(type='ImageFolder', data_root=str(root), pipeline=PIPELINE)
    return MixedDataset(
        labeled, dict(type='UnlabeledFolder', data_root=str(others), pipeline=PIPELINE)
    )


def sampler(dataset, monkeypatch, rank=0, processes=1, **kwargs):
    monkeypatch.setattr('mmengine.dataset.sampler.get_dist_info', lambda: (rank, processes))
    return MixedSampler(dataset, **dict(seed=0) | kwargs)


def epoch(each, number=0):
    each.set_epoch(number)
    indices = list(each)
    assert len(indices) == len(each)
    return indices


class TestFolder:
    def test_all_images_in_and_below(self, others):
        data = unlabeled(others, metainfo=dict(classes=('a', 'b')))
        names = [os.path.relpath(data.get_data_info(i)['img_path'], others) for i in range(7)]
        assert names[-1] == 'x.png' and {'deep/er/y.PNG', 'deep/z.png'} < {*names}
        sample = data[0]['data_samples']
        assert is_unlabeled(sample) and 'gt_label' not in sample
        assert not len(data.get_gt_labels()) and data.metainfo['classes'] == ('a', 'b')

    def test_a_list_of_paths(self, others, tmp_path):
        file = others / 'list.txt'
        file.write_text(f'\ufeffx.png\n\n  deep/z.png  \n{others}/1.png\n')
        elsewhere = tmp_path / 'list.txt'
        shutil.move(file, elsewhere)
        paths = [others / name for name in ('x.png', 'deep/z.png', '1.png')]
        for data in (unlabeled(others, elsewhere), unlabeled('', shutil.copy(elsewhere, file))):
            assert [data.get_data_info(i)['img_path'] for i in range(len(data))] == [
                str(path) for path in paths
            ]
        file.unlink()

    @pytest.mark.parametrize(
        ('content', 'message'),
        [
            ('x.png\nno.png\n', "ann_file=.*: line 2 names '.*/no.png', which is no file"),
            ('\n', 'ann_file=.*: is empty'),
            (f'x.png\n{__file__}', "ann_file=.*: line 2 names .*_unlabeled.py', which is no image"),
            (b'\xff\xfe', 'ann_file=.*: cannot be read'),
            (None, 'ann_file=.*: cannot be read'),
        ],
    )  # fmt: skip
    def test_wrong_lists(self, others, tmp_path, content, message):
        file = tmp_path / 'list.txt'
        if content is not None:
            file.write_bytes(content if isinstance(content, bytes) else content.encode())
        with pytest.raises(ConfigError, match=message):
            unlabeled(others, file)

    def test_no_images(self, tmp_path):
        (tmp_path / 'sub').mkdir()
        (tmp_path / 'sub/notes.txt').touch()
        with pytest.raises(ConfigError, match='data_root=.*: there are no images in or below it'):
            unlabeled(tmp_path)
        with pytest.raises(ConfigError, match="'.*/none' cannot be listed"):
            unlabeled(tmp_path / 'none')
        with pytest.raises(ConfigError, match="data_root='': must be a folder of images"):
            unlabeled()


class TestMixedDataset:
    def test_labelled_images_come_first(self, mixed):
        assert len(mixed) == 19 and mixed.metainfo['classes'] == ('a', 'b', 'c')
        assert len(mixed.get_gt_labels()) == 12
        samples = [mixed[i]['data_samples'] for i in (0, 11, 12, 18)]
        assert [is_unlabeled(sample) for sample in samples] == [False, False, True, True]
        assert [sample.sample_idx for sample in samples] == [0, 11, 12, 18]

    def test_the_second_part_must_have_no_labels(self, root):
        labeled = dict(type='ImageFolder', data_root=str(root))
        with pytest.raises(ConfigError, match='unlabeled: is a ImageFolder; must be an Unlabeled'):
            MixedDataset(labeled, labeled)


class TestSampler:
    @pytest.mark.parametrize('ratio', [0.5, 0.25, 0.1, 0.75])
    @pytest.mark.parametrize('processes', [1, 2, 3])
    def test_each_batch_has_its_part(self, mixed, monkeypatch, ratio, processes):
        shown = []
        for rank in range(processes):
            indices = epoch(sampler(mixed, monkeypatch, rank, processes, unlabeled_ratio=ratio))
            kinds = [index >= 12 for index in indices]
            for size in (4, 8, 20):
                batches = [kinds[i : i + size] for i in range(len(kinds) - size + 1)]
                wanted = Fraction(str(ratio)) * size
                assert all(abs(sum(batch) - wanted) < 1 for batch in batches)
            assert kinds.count(False) == 12 // processes
            shown += indices
        # Each labelled image is shown once.
        assert sorted(index for index in shown if index < 12) == [*range(12)]
        assert len(shown) - 12 == int(12 * ratio / (1 - ratio)) // processes * processes

    def test_unlabelled_images_follow_each_other_over_epochs(self, mixed, monkeypatch):
        """An epoch continues where the last one has ended, so all are shown equally often."""
        each = sampler(mixed, monkeypatch, unlabeled_ratio=0.25)
        shown = [i for number in range(7) for i in epoch(each, number) if i >= 12]
        assert len(shown) == 7 * 4
        for start in range(0, 28, 7):
            assert sorted(shown[start : start + 7]) == [*range(12, 19)]
        assert shown[:7] != shown[7:14]

    def test_is_a_function_of_seed_and_epoch(self, mixed, monkeypatch):
        first = epoch(sampler(mixed, monkeypatch), 3)
        later = sampler(mixed, monkeypatch)
        epoch(later, 1)
        assert epoch(later, 3) == first != epoch(sampler(mixed, monkeypatch, seed=1), 3)
        views = [index.view for index in epoch(sampler(mixed, monkeypatch, views=2), 3)]
        assert {view.epoch for view in views} == {1}
        assert views == [index.view for index in epoch(sampler(mixed, monkeypatch), 1)]

    def test_processes_share_an_epoch(self, mixed, monkeypatch):
        """Each process takes its part of the order that one process would follow."""
        alone = epoch(sampler(mixed, monkeypatch), 2)
        parts = [epoch(sampler(mixed, monkeypatch, rank, 2), 2) for rank in (0, 1)]
        for kind in (False, True):
            order = [i for i in alone if (i >= 12) == kind]
            both = zip(*([i for i in part if (i >= 12) == kind] for part in parts), strict=True)
            assert order == [index for pair in both for index in pair]

    def test_starts_in_the_middle(self, mixed, monkeypatch):
        each = sampler(mixed, monkeypatch)
        whole = epoch(each)
        each.start_at(10)
        assert list(each) == whole[10:] and list(each) == whole

    @pytest.mark.parametrize('ratio', [0, 1, 1.5, -0.1, 1e-9, True, '0.5', float('nan')])
    def test_ratio_out_of_range(self, mixed, ratio):
        with pytest.raises(ConfigError, match=r'unlabeled_ratio=.*: must be a number between 0'):
            MixedSampler(mixed, ratio, seed=0)

    def test_needs_a_mixed_data_set(self, others):
        with pytest.raises(ConfigError, match='needs a MixedDataset, dataset is a UnlabeledFolder'):
            MixedSampler(unlabeled(others), seed=0)


class TestChecks:
    def test_images_of_the_validation(self, root, others, tmp_path):
        """Also below the folder, and through a link."""
        val = ImageFolder(str(root), 'val', serialize_data=False)
        check_disjoint(unlabeled(others), val)
        link = tmp_path / 'link'
        link.symlink_to(root / 'val')
        for folder in (root, root / 'val/a', link):
            with pytest.raises(ConfigError, match='also in the unlabelled set, .*; leave them out'):
                check_disjoint(unlabeled(folder), val)
        labeled = dict(type='ImageFolder', data_root=str(root))
        part = dict(type='UnlabeledFolder', data_root=str(root / 'val/b'))
        with pytest.raises(ConfigError, match='2 of its 6 images are also in the unlabelled set'):
            check_disjoint(MixedDataset(labeled, part), val)

    def test_without_a_teacher(self, mixed, root):
        for data in (mixed, RepeatDataset(mixed.datasets[1], 2)):
            with pytest.raises(ConfigError, match='dataset=UnlabeledFolder: must be a labelled'):
                check_unlabeled(data, KDLoss())
        check_unlabeled(mixed.datasets[0], KDLoss())
        assert DefaultSampler(mixed, seed=0).num_samples == 19

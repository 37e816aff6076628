"""Samples depend on (seed, epoch, index) alone: real pipelines, workers and runs."""

from __future__ import annotations

import copy
import random
import warnings
from pathlib import Path

import numpy as np
import pytest
import torch
from helpers import resnet, run_ranks, runner_config
from mmengine.config import Config
from mmengine.dataset import ConcatDataset, DefaultSampler, RepeatDataset
from mmengine.registry import DATA_SAMPLERS, DATASETS
from mmengine.runner import Runner
from mmpretrain.registry import TRANSFORMS

from mldr_kd_mm import ConfigError
from mldr_kd_mm.datasets import Digits, ViewSampler
from mldr_kd_mm.structures.view import get_views

PIPELINE = [
    dict(type='RandomResizedCrop', scale=16),
    dict(type='RandomFlip', prob=0.5),
    dict(
        type='RandAugment',
        policies='timm_increasing',
        num_policies=2,
        total_level=10,
        magnitude_level=9,
        magnitude_std=0.5,
    ),
    dict(type='torchvision/ColorJitter', brightness=0.5),
    dict(type='RandomErasing', erase_prob=0.5, mode='rand', min_area_ratio=0.02),
    dict(type='PackInputs'),
]
# torchvision's transforms draw from torch's generator, the others from NumPy's and Python's.
PIPELINE.insert(3, dict(type='NumpyToPIL'))
PIPELINE.insert(5, dict(type='PILToNumpy'))
DIGITS = dict(type='mldr_kd_mm.Digits', subset=dict(per_class=2), pipeline=PIPELINE)


@TRANSFORMS.register_module()
class GiveUpHalfTheTime:
    """A transform that returns None for some images, as LoadImageFromFile may."""

    def __call__(self, results):
        return None if np.random.rand() < 0.5 else results


def loader(workers=0, batch_size=4, seed=0, dataset=DIGITS, persistent=False, **sampler):
    with warnings.catch_warnings():
        warnings.simplefilter('ignore')
        return Runner.build_dataloader(
            dict(
                batch_size=batch_size,
                num_workers=workers,
                persistent_workers=persistent,
                dataset=copy.deepcopy(dataset),
                sampler=dict(type='ViewSampler', **sampler),
                collate_fn=dict(type='default_collate'),
            ),
            seed=seed,
        )


def images(data_loader, epochs=(0,)):
    """Return view -> image for all samples of a loader in some epochs."""
    found = {}
    for epoch in epochs:
        data_loader.sampler.set_epoch(epoch)
        for batch in data_loader:
            found |= zip(get_views(batch['data_samples']), batch['inputs'], strict=True)
    return found


def assert_same(one, other):
    assert one.keys() == other.keys()
    for view in one:
        assert torch.equal(one[view], other[view]), view


@pytest.fixture
def expected():
    return images(loader(), epochs=(0, 1, 2))


def test_depends_on_epoch_index_and_seed(expected):
    assert len(expected) == 3 * 20
    assert len({image.numpy().tobytes() for image in expected.values()}) == 60
    other = images(loader(seed=1))
    for view, image in other.items():
        assert not torch.equal(image, expected[view._replace(seed=0)])


@pytest.mark.parametrize(
    'changed',
    [
        dict(workers=1),
        dict(workers=3),
        dict(workers=2, persistent=True),
        dict(batch_size=7),
        dict(shuffle=False),
        dict(dataset=dict(DIGITS, serialize_data=False)),
    ],
    ids=str,
)
def test_depends_on_nothing_else(expected, changed):
    assert_same(images(loader(**changed), epochs=(0, 1, 2)), expected)


def test_epochs_in_any_order(expected):
    assert_same(images(loader(), epochs=(2, 0, 1)), expected)


def test_processes_share_the_views(expected, tmp_path):
    """Start two processes, as torchrun would; each gets half of the samples."""
    script = """
import sys
import torch
sys.path.insert(0, sys.argv[3])
from mmengine.registry import init_default_scope
import mldr_kd_mm
from helpers import leave_group
from datasets.test_view_sampler import images, loader
rank, folder = int(sys.argv[1]), sys.argv[2]
torch.distributed.init_process_group(
    'gloo', init_method=f'file://{folder}/store', rank=rank, world_size=2
)
init_default_scope('mldr_kd_mm')
torch.save([tuple(pair) for pair in images(loader(), (0, 1, 2)).items()], f'{folder}/{rank}.pt')
leave_group()
"""
    tests = Path(__file__).parents[1]
    run_ranks(*(('-c', script, rank, tmp_path, tests) for rank in (0, 1)))
    halves = [dict(torch.load(tmp_path / f'{rank}.pt', weights_only=False)) for rank in (0, 1)]
    assert [len(half) for half in halves] == [30, 30]
    assert_same(halves[0] | halves[1], expected)


def test_a_subset_of_the_classes():
    dataset = dict(DIGITS, subset=dict(labels=[3, 1], per_class=2))
    assert_same(images(loader(dataset=dataset)), images(loader(workers=1, dataset=dataset)))


def test_views_repeat(expected):
    repeating = loader(views=2)
    first = images(repeating, epochs=(0, 1))
    assert_same(first, images(loader(), epochs=(0, 1)))
    assert_same(images(repeating, epochs=(2, 3)), first)
    repeating.sampler.set_epoch(5)
    order = list(repeating.sampler)
    repeating.sampler.set_epoch(1)
    assert list(repeating.sampler) == order


@pytest.mark.parametrize('views', [0, -1, 1.5, '2'])
def test_refuses(views):
    with pytest.raises(ConfigError, match=f'views={views!r}: must be a positive integer'):
        ViewSampler(Digits(), views=views)


@pytest.mark.parametrize('arguments', [{}, dict(shuffle=False), dict(seed=5, round_up=False)])
def test_order_is_that_of_the_default_sampler(arguments):
    arguments = dict(seed=3, dataset=Digits(subset=dict(per_class=3))) | arguments
    default = DefaultSampler(**arguments)
    ours = DATA_SAMPLERS.build(dict(type='ViewSampler', **arguments))
    for epoch in (0, 4):
        default.set_epoch(epoch)
        ours.set_epoch(epoch)
        assert list(ours) == list(default)
    assert len(ours) == len(default)


def test_leaves_the_global_state_alone():
    def drawn():
        return random.random(), np.random.rand(), torch.rand(1).item()

    random.seed(0), np.random.seed(0), torch.manual_seed(0)
    plain = DATASETS.build(dict(DIGITS, pipeline=[dict(type='PackInputs')]))
    for _ in torch.utils.data.DataLoader(plain, batch_size=4, collate_fn=list):
        pass  # torch draws a seed for the workers, with any sampler
    before = drawn()
    random.seed(0), np.random.seed(0), torch.manual_seed(0)
    for _ in loader():
        pass
    assert drawn() == before


def test_items_asked_for_otherwise_are_as_ever():
    data_loader = loader()
    assert 'view' not in data_loader.dataset[3]['data_samples']
    assert get_views([data_loader.dataset[3]['data_samples']]) is None


@pytest.mark.parametrize('workers', [0, 2])
def test_the_place_of_a_sample_that_gives_nothing_is_taken_reproducibly(workers):
    pipeline = [dict(type='GiveUpHalfTheTime'), *PIPELINE]
    dataset = dict(DIGITS, pipeline=pipeline)
    assert_same(images(loader(dataset=dataset)), images(loader(workers, dataset=dataset)))


@pytest.mark.parametrize('kind', [RepeatDataset, ConcatDataset])
def test_inside_wrappers(kind):
    inner = dict(times=2, dataset=DIGITS) if kind is RepeatDataset else dict(datasets=[DIGITS] * 2)
    dataset = dict(type=kind.__name__, **inner)
    found = images(loader(dataset=dataset))
    assert len(found) == 40
    # Each index has its own images, even if two indices are the same sample.
    assert len({image.numpy().tobytes() for image in found.values()}) == 40
    assert_same(found, images(loader(2, dataset=dataset)))


def test_part_of_an_epoch(expected):
    data_loader = Runner.build_dataloader(
        dict(
            batch_size=4,
            dataset=copy.deepcopy(DIGITS),
            sampler=dict(type='ViewSampler', shuffle=False),
            num_batch_per_epoch=2,
        ),
        seed=0,
    )
    found = images(data_loader)
    assert len(found) == 8
    assert_same(found, {view: expected[view] for view in found})


def mixed_run(work_dir, seen, **kwargs):
    """Train a student with mixup and cutmix, recording the batches that its loss receives."""
    augments = [dict(type='Mixup', alpha=0.8), dict(type='CutMix', alpha=1.0)]
    student = resnet(
        train_cfg=dict(augments=augments),
        data_preprocessor=dict(num_classes=10, mean=[127.0] * 3, std=[64.0] * 3),
    )
    config = runner_config(student, work_dir, **kwargs)
    config['train_dataloader'].update(
        dataset=copy.deepcopy(DIGITS), sampler=dict(type='ViewSampler'), batch_size=5
    )
    runner = Runner.from_cfg(Config(config))

    def note(module, args, output):
        if module.training:
            labels = torch.stack([sample.gt_score for sample in output['data_samples']])
            seen.append((output['inputs'].clone(), labels))

    runner.model.data_preprocessor.register_forward_hook(note)
    runner.train()


def test_a_resumed_run_sees_the_same_mixed_images(tmp_path, monkeypatch):
    # With torch's default of weights_only=True the original mmengine cannot read its checkpoints.
    monkeypatch.setenv('TORCH_FORCE_NO_WEIGHTS_ONLY_LOAD', '1')
    whole, parts = [], []
    mixed_run(tmp_path / 'whole', whole, max_epochs=3)
    mixed_run(tmp_path / 'first', parts, max_epochs=1)
    checkpoint = str(tmp_path / 'first' / 'epoch_1.pth')
    mixed_run(tmp_path / 'second', parts, max_epochs=3, resume=True, load_from=checkpoint)
    assert len(whole) == len(parts) == 3 * 4
    assert any(((label > 0) & (label < 1)).any() for _, label in whole)
    for (image, label), (again, label_again) in zip(whole, parts, strict=True):
        assert torch.equal(image, again)
        assert torch.equal(label, label_again)

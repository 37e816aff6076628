"""The faster transforms make the same images as mmpretrain's."""

from __future__ import annotations

import random
import runpy
from pathlib import Path

import numpy as np
import pytest
import torch
from mmengine.config import Config
from mmengine.dataset import Compose
from mmpretrain.datasets import PackInputs, RandomResizedCrop
from PIL import Image
from scipy.stats import binomtest, ks_2samp

from mldr_kd_mm.datasets import PackPlanes, RandomResizedCropFlip
from mldr_kd_mm.registry import TRANSFORMS
from mldr_kd_mm.utils.errors import ConfigError

ROOT = Path(__file__).resolve().parents[2]
BASES = ROOT / 'configs/_base_/datasets'
# mmpretrain's transforms that each of ours replaces.
mmpretrain_steps = runpy.run_path(ROOT / 'benchmarks/data.py')['mmpretrain_steps']


def build(*steps: dict) -> Compose:
    return Compose([TRANSFORMS.build(step) for step in steps])


def run(pipeline: Compose, image: np.ndarray, seed: int) -> tuple[dict, float]:
    """Return the results for an image, and the generator's next number."""
    random.seed(seed)
    np.random.seed(seed)
    return pipeline(dict(img=image.copy(), gt_label=3, sample_idx=7)), np.random.random()


def assert_same(pipeline: list[dict], shape: tuple, times: int, atol: int = 0) -> None:
    """Assert that a pipeline and mmpretrain's give the same results for an image."""
    ours = build(*pipeline)
    theirs = build(*(step for each in pipeline for step in mmpretrain_steps(each)))
    rng = np.random.default_rng(0)
    for seed in range(times):
        image = rng.integers(0, 256, shape, dtype=np.uint8)
        (packed, after), (expected, after_theirs) = (run(x, image, seed) for x in (ours, theirs))
        assert packed['inputs'].dtype == torch.uint8
        assert packed['inputs'].is_contiguous()
        torch.testing.assert_close(packed['inputs'], expected['inputs'], rtol=0, atol=atol)
        assert packed['data_samples'].metainfo == expected['data_samples'].metainfo
        assert packed['data_samples'].gt_label.tolist() == [3]
        assert packed['data_samples'].sample_idx == 7
        assert after == after_theirs


class TestRandomResizedCropFlip:
    # In an oblong image many boxes do not fit, and the central fallback is used.
    @pytest.mark.parametrize('shape', [(32, 32, 3), (375, 500, 3), (20, 90, 3), (90, 20, 3)])
    @pytest.mark.parametrize('flip_prob', [0.5, 0.2, 0, 1])
    def test_is_mmpretrain_s_crop_and_flip(self, shape, flip_prob):
        step = dict(type='RandomResizedCropFlip', scale=(56, 48), flip_prob=float(flip_prob))
        assert_same([step, dict(type='PackPlanes')], shape, times=50)

    @pytest.mark.parametrize(
        'options',
        [
            dict(crop_ratio_range=(0.5, 0.6), aspect_ratio_range=(0.2, 5.0)),
            dict(max_attempts=0, aspect_ratio_range=(0.5, 0.8)),
            dict(interpolation='bicubic'),
            dict(backend='pillow'),
        ],
    )
    def test_takes_mmpretrain_s_options(self, options):
        step = dict(type='RandomResizedCropFlip', scale=56, flip_prob=0.5, **options)
        # Mirrored weights of a bicubic filter may round differently.
        atol = int(options.get('interpolation') == 'bicubic')
        assert_same([step, dict(type='PackPlanes')], (32, 32, 3), times=50, atol=atol)

    def test_has_mmpretrain_s_distribution(self):
        """Compare two samples of 10,000 draws with different seeds."""
        image = np.zeros((32, 32, 3), np.uint8)
        ours, theirs = RandomResizedCropFlip(224), RandomResizedCrop(224)
        np.random.seed(1)
        boxes = np.array([ours.rand_crop_params(image) for _ in range(10_000)])
        np.random.seed(2)
        expected = np.array([theirs.rand_crop_params(image) for _ in range(10_000)])
        for values in (
            lambda top, left, h, w: h * w,
            lambda top, left, h, w: w / h,
            lambda top, left, h, w: top + h / 2,
            lambda top, left, h, w: left + w / 2,
        ):
            assert ks_2samp(values(*boxes.T), values(*expected.T)).pvalue > 0.01
        np.random.seed(3)
        flips = [RandomResizedCropFlip(2)(dict(img=image))['flip'] for _ in range(10_000)]
        assert binomtest(sum(flips), len(flips), 0.5).pvalue > 0.01

    def test_leaves_the_image_alone(self):
        image = np.arange(32 * 32 * 3).astype(np.uint8).reshape(32, 32, 3)
        before = image.copy()
        result = RandomResizedCropFlip(32, flip_prob=1, crop_ratio_range=(1, 1))(dict(img=image))
        result['img'][:] = 0
        np.testing.assert_array_equal(image, before)

    @pytest.mark.parametrize('flip_prob', [-0.1, 1.1, float('nan'), '0.5', [0.5]])
    def test_refuses_what_is_no_probability(self, flip_prob):
        with pytest.raises(ConfigError, match='flip_prob=.*: must be a number from 0 to 1'):
            RandomResizedCropFlip(224, flip_prob=flip_prob)

    def test_repr(self):
        text = repr(RandomResizedCropFlip(224, flip_prob=0.3))
        assert text.startswith('RandomResizedCropFlip(scale=(224, 224), ')
        assert text.endswith(', backend=cv2, flip_prob=0.3)')


IMAGE = np.random.default_rng(0).integers(0, 256, (5, 7, 3), dtype=np.uint8)


@pytest.mark.parametrize(
    'image',
    [
        IMAGE,
        IMAGE[:, ::-1],
        IMAGE[1:4, 2:6],
        IMAGE.transpose(1, 0, 2),
        IMAGE[..., :1],
        IMAGE[..., 0],
        np.concatenate([IMAGE] * 3, axis=2),
        IMAGE.astype(np.float32),
        np.stack([IMAGE, IMAGE]),
        [IMAGE, IMAGE[:, ::-1]],
        Image.fromarray(IMAGE),
        torch.from_numpy(IMAGE),
    ],
    ids=lambda image: f'{type(image).__name__}-{getattr(image, "shape", "")}',
)
def test_packs_whatever_mmpretrain_packs(image):
    packed = PackPlanes()(dict(img=image))['inputs']
    expected = PackInputs()(dict(img=image))['inputs']
    torch.testing.assert_close(packed, expected, rtol=0, atol=0)


@pytest.mark.parametrize(
    'base', ['cifar100_224', 'cifar100_224_strong', 'tiny-imagenet_224', 'tiny-imagenet_64_strong']
)
def test_the_bases_make_the_images_that_mmpretrain_s_steps_make(base):
    cfg = Config.fromfile(BASES / f'{base}.py')
    for loader in (cfg.train_dataloader, cfg.val_dataloader):
        pipeline = [x for x in loader.dataset.pipeline if x['type'] != 'LoadImageFromFile']
        assert_same(pipeline, (64, 64, 3), times=20)

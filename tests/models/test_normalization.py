"""Renormalize undoes one preprocessor and does another's work."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from mmpretrain.models import ClsDataPreprocessor
from torch.testing import assert_close

from mldr_kd_mm.models.data_preprocessor import Renormalize

PLAIN = dict()
IMAGENET = dict(mean=[123.675, 116.28, 103.53], std=[58.395, 57.12, 57.375], to_rgb=True)
BGR = dict(mean=[103.53, 116.28, 123.675], std=[1.0, 2.0, 3.0])
CIFAR = dict(mean=[129.3, 124.1, 112.4], std=[68.2, 65.4, 70.4])
CONFIGS = dict(plain=PLAIN, imagenet=IMAGENET, bgr=BGR, cifar=CIFAR, flipped=dict(to_rgb=True))


def images(batch=4, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(0, 256, (batch, 3, 5, 6), generator=generator, dtype=torch.uint8)


def preprocess(config, inputs):
    return ClsDataPreprocessor(**config)(dict(inputs=inputs))['inputs']


def renormalize(source, target):
    return Renormalize(ClsDataPreprocessor(**source), ClsDataPreprocessor(**target))


@pytest.mark.parametrize('target', CONFIGS.values(), ids=CONFIGS)
@pytest.mark.parametrize('source', CONFIGS.values(), ids=CONFIGS)
class TestPairs:
    def test_gives_what_the_other_preprocessor_would_have(self, source, target):
        found = renormalize(source, target)(preprocess(source, images()))
        assert_close(found, preprocess(target, images()), rtol=1e-5, atol=1e-4)

    def test_mixup_may_come_first(self, source, target):
        """mixup of the images, and the two halves of cutmix, stay what they are."""

        def mixed(config):
            first, second = preprocess(config, images()), preprocess(config, images(seed=1))
            batch = 0.3 * first + 0.7 * second
            batch[..., 2:4, 1:3] = first[..., 2:4, 1:3]
            return batch

        found = renormalize(source, target)(mixed(source))
        assert_close(found, mixed(target), rtol=1e-5, atol=1e-4)

    def test_there_and_back(self, source, target):
        inputs = preprocess(source, images())
        there = renormalize(source, target)(inputs)
        assert_close(renormalize(target, source)(there), inputs, rtol=1e-5, atol=1e-4)

    def test_nothing_is_done_where_both_are_equal(self, source, target):
        inputs = preprocess(source, images())
        assert (renormalize(source, target)(inputs) is inputs) == (source == target)


channels = st.lists(st.floats(0, 255), min_size=3, max_size=3)
widths = st.lists(st.floats(1, 255), min_size=3, max_size=3)
configs = st.fixed_dictionaries(dict(mean=channels, std=widths, to_rgb=st.booleans()))


@settings(max_examples=50, deadline=None)
@given(configs, configs)
def test_any_pair(source, target):
    found = renormalize(source, target)(preprocess(source, images()))
    # In units of the pixels, whatever the target's scale.
    atol = 1e-3 / min(target['std'])
    assert_close(found, preprocess(target, images()), rtol=1e-4, atol=atol)


def test_input_is_not_changed():
    inputs = preprocess(CIFAR, images())
    before = inputs.clone()
    renormalize(CIFAR, IMAGENET)(inputs)
    assert_close(inputs, before, rtol=0, atol=0)


def test_is_not_saved_but_moves():
    module = renormalize(CIFAR, IMAGENET)
    assert not module.state_dict()
    assert module.double()(preprocess(CIFAR, images()).double()).dtype == torch.float64

"""The losses, built from the shipped configs, against golden values."""

from __future__ import annotations

import copy
from pathlib import Path

import numpy as np
import pytest
import torch
from mmengine.config import Config
from torch.testing import assert_close

from mldr_kd_mm.registry import MODELS

ROOT = Path(__file__).parents[3]

# Computed with OFA-KD's functions and RSD's release in float64, from inputs in float32.
GOLDEN = np.load(ROOT / 'tests' / 'data' / 'losses.npz')
WIDTHS = dict(student_width=32, teacher_width=32)

CASES = {
    'kd_t1': dict(type='KDLoss', temperature=1.0),
    'kd_t4': dict(type='KDLoss', temperature=4.0),
    'dkd_a1_b2_t1': dict(type='DKDLoss', alpha=1.0, beta=2.0, temperature=1.0),
    'dkd_a1_b8_t4': dict(type='DKDLoss', alpha=1.0, beta=8.0, temperature=4.0),
    'dist_b1_g1_t1': dict(type='DISTLoss', beta=1.0, gamma=1.0, temperature=1.0),
    'dist_b2_g2_t4': dict(type='DISTLoss', beta=2.0, gamma=2.0, temperature=4.0),
    'ofa_e1': dict(type='OFALoss', eps=1.0),
    'ofa_e1.5': dict(type='OFALoss', eps=1.5),
    'rkd_d25_a50': dict(type='RKDLoss', distance_weight=25.0, angle_weight=50.0),
    'rsd_k0.01': dict(type='RSDLoss', kappa=0.01, decoupler=False, **WIDTHS),
}
# The classes' own defaults.
DEFAULTS = {
    'kd_t1': dict(type='KDLoss'),
    'dkd_a1_b2_t1': dict(type='DKDLoss'),
    'dist_b1_g1_t1': dict(type='DISTLoss'),
    'ofa_e1': dict(type='OFALoss'),
    'rkd_d25_a50': dict(type='RKDLoss'),
    'rsd_k0.01': dict(type='RSDLoss', decoupler=False, **WIDTHS),
}
CONFIGS = {
    'kd_t1': 'kd',
    'kd_t4': 'kd_t4',
    'dkd_a1_b2_t1': 'dkd',
    'dist_b1_g1_t1': 'dist',
    'ofa_e1': 'ofa',
    'rkd_d25_a50': 'rkd',
    'rsd_k0.01': 'rsd',
}


def inputs(key: str, dtype: torch.dtype) -> dict[str, torch.Tensor]:
    names = dict(student='student', teacher='teacher')
    if key.startswith(('rkd', 'rsd')):
        student = 'rsd_student_feature' if key.startswith('rsd') else 'student_feature'
        names = dict(student=student, teacher='teacher_feature')
    tensors = {name: torch.from_numpy(GOLDEN[stored]).to(dtype) for name, stored in names.items()}
    if key.startswith(('dkd', 'ofa')):
        tensors['target'] = torch.from_numpy(GOLDEN['target'])
    return tensors


def check(key: str, config: dict, dtype=torch.float64, rtol=1e-9) -> None:
    tensors = inputs(key, dtype)
    tensors['student'].requires_grad_()
    value = MODELS.build(copy.deepcopy(config))(**tensors)
    value.backward()
    assert value.dtype == dtype
    assert_close(value.double(), torch.from_numpy(GOLDEN[key]), rtol=rtol, atol=0)
    grad = torch.from_numpy(GOLDEN[f'{key}_grad'])
    # The error of an entry near zero is relative to the larger entries.
    atol = rtol * grad.abs().max().item()
    assert_close(tensors['student'].grad.double(), grad, rtol=rtol, atol=atol)


def test_every_golden_value_has_a_case():
    assert set(CASES) == {key.removesuffix('_grad') for key in GOLDEN if key.endswith('_grad')}


@pytest.mark.parametrize(
    ('dtype', 'rtol'), [(torch.float64, 1e-9), (torch.float32, 1e-5)], ids=['float64', 'float32']
)
@pytest.mark.parametrize('key', CASES)
def test_value_and_gradient(key, dtype, rtol):
    check(key, CASES[key], dtype, rtol)


@pytest.mark.parametrize('key', DEFAULTS)
def test_defaults(key):
    check(key, DEFAULTS[key])


@pytest.mark.parametrize('key', CONFIGS)
def test_shipped_config(key):
    path = ROOT / 'configs' / '_base_' / 'methods' / f'{CONFIGS[key]}.py'
    config = Config.fromfile(path).method.losses[0].loss.to_dict()
    if key.startswith('rsd'):
        config |= dict(decoupler=False, **WIDTHS)
    check(key, config)

"""User errors and argument checks."""

from __future__ import annotations

import math

import pytest

from mldr_kd_mm.utils import errors
from mldr_kd_mm.utils.errors import ConfigError, MissingFileError, checked_arguments, named


class TestNamed:
    @pytest.mark.parametrize(
        ('error', 'message'),
        [
            (ValueError('no such thing'), 'neck: no such thing'),
            (KeyError('depth'), 'neck: KeyError: depth'),
            (AssertionError(), 'neck: AssertionError'),
            (FileNotFoundError(), 'neck: FileNotFoundError'),  # as timm raises it
            (RuntimeError('\nfirst\nsecond'), 'neck: first second'),
        ],
        ids=repr,
    )
    def test_gives_the_name(self, error, message):
        with pytest.raises(ConfigError) as caught, named('neck'):
            raise error
        assert str(caught.value) == message
        assert caught.value.__cause__ is error

    @pytest.mark.parametrize('error', [ConfigError('mine'), MissingFileError('a.pth')])
    def test_leaves_what_is_already_clear(self, error):
        with pytest.raises(type(error)) as caught, named('neck'):
            raise error
        assert caught.value is error

    def test_lets_an_interrupt_through(self):
        with pytest.raises(KeyboardInterrupt), named('neck'):
            raise KeyboardInterrupt


class Part:
    @checked_arguments
    def __init__(self, width: int, depth: int = 2) -> None:
        self.size = width * depth


class TestCheckedArguments:
    def test_that_fit(self):
        assert Part(3).size == Part(depth=2, width=3).size == 6

    @pytest.mark.parametrize(
        ('arguments', 'reason'),
        [
            (dict(width=1, dept=2), "got an unexpected keyword argument 'dept'"),
            (dict(depth=2), "missing a required argument: 'width'"),
            (dict(width=1, self=2), "multiple values for argument 'self'"),
        ],
        ids=str,
    )
    def test_that_do_not(self, arguments, reason):
        with pytest.raises(ConfigError) as caught:
            Part(**arguments)
        assert str(caught.value) == f'Part: {reason}; it takes width, depth'

    def test_an_error_inside_is_not_hidden(self):
        with pytest.raises(TypeError, match='unsupported operand'):
            Part(None)


MODELS = [
    *('vit_tiny_patch16_224', 'vit_tiny_patch16_384', 'vit_small_patch16_224', 'tinynet_a'),
    *('resnet18', 'resnet50', 'mobilenetv2_100', 'fastvit_t8', 'visformer_tiny'),
]


@pytest.mark.parametrize(
    ('name', 'first'),
    [
        ('vit_tinny', 'vit_tiny_patch16_224'),
        ('vit_smal', 'vit_small_patch16_224'),
        ('mobilnetv2', 'mobilenetv2_100'),
        ('resnet19', 'resnet18'),
        ('vit_tiny_patch16_225', 'vit_tiny_patch16_224'),
        ('swin', None),
        ('r', None),
        ('', None),
    ],
)
def test_did_you_mean(name, first):
    hint = errors.did_you_mean(name, MODELS)
    assert hint.startswith(f'did you mean {first}') if first else hint == ''


def test_a_name_that_is_the_start_of_another_is_no_typo():
    assert errors.did_you_mean('train', ['train_cfg'], cutoff=0.9) == ''


@pytest.mark.parametrize(
    ('check', 'right', 'wrong'),
    [
        (errors.check_positive, [1, 10**9], [0, -1, 1.0, True, '1', None, math.nan]),
        (errors.check_above_zero, [1, 0.1], [0, -1, True, '1', None, math.nan, math.inf]),
        (errors.check_not_negative, [0, 0.0, 2], [-1e-9, False, '1', None, math.nan, math.inf]),
        (errors.check_switch, [True, False], [0, 1, None, 'yes']),
        (errors.check_config, [dict(type='X')], [{}, dict(type=None), dict(x=1), 'X', None, [1]]),
        (
            lambda **fields: errors.check_sizes(2, **fields),
            [(1, 2), [3, 4]],
            [(1,), (1, 2, 3), (0, 1), (1, 2.0), (True, 1), '12', None, 2, {1, 2}],
        ),
    ],
    ids=['positive', 'above_zero', 'not_negative', 'switch', 'config', 'sizes'],
)
def test_checks(check, right, wrong):
    for value in right:
        check(field=value)
    for value in wrong:
        with pytest.raises(ConfigError) as caught:
            check(other=right[0], field=value)
        assert str(caught.value).startswith(f'field={value!r}: must be ')


@pytest.mark.parametrize(
    'error, code, text',
    [
        (ConfigError('lr=0: is wrong'), 2, 'error: lr=0: is wrong'),
        (KeyboardInterrupt(), 130, 'stopped'),
    ],
)
def test_a_program_ends_with_one_line(capsys, error, code, text):
    with pytest.raises(SystemExit) as ended, errors.one_line_for(ConfigError, show_traceback=False):
        raise error
    assert ended.value.code == code
    assert capsys.readouterr().err == f'{text}\n'

"""Config texts are read without executing them."""

from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from mmengine.config import Config

from mldr_kd_mm.utils.errors import ConfigError
from mldr_kd_mm.utils.safe_config import parse_config

CONFIGS = Path(__file__).parents[2] / 'configs'

# mmengine does not quote Python's keywords and reserves names that start with an underscore.
names = st.text('abcghi_', min_size=1, max_size=5).filter(lambda name: not name.startswith('_'))
plain = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(),
    st.floats(allow_nan=False),
    st.text(st.characters(codec='ascii', categories=('L', 'N', 'P', 'Z')), max_size=8),
)
values = st.recursive(
    plain,
    lambda inner: st.one_of(
        st.lists(inner, max_size=3),
        st.lists(inner, max_size=3).map(tuple),
        st.dictionaries(st.one_of(names, names.map('{}.x'.format)), inner, max_size=3),
    ),
    max_leaves=6,
)


@settings(max_examples=30, deadline=None)
@given(st.dictionaries(names, values, max_size=4))
def test_reads_what_mmengine_writes(config):
    written = Config(config)
    assert parse_config(written.pretty_text) == written.to_dict()


@pytest.mark.parametrize(
    'name', ['mldr/deit_to_mobilenet_c100.py', 'mldr/swin-tiny_to_vim-tiny_c100.py']
)
def test_reads_our_configs(name):
    config = Config.fromfile(CONFIGS / name)
    assert parse_config(config.pretty_text) == config.to_dict()


@pytest.mark.parametrize(
    'text',
    [
        'a = open("CANARY", "w")',
        'a = dict(b=[__import__("os").mkdir("CANARY")])',
        'a = dict(**{"b": 1})',
        'a = (lambda: 1)()',
        'a = b',
        'a = f"{open}"',
        'a = 1 if True else 2',
        'import os',
        'a.b = 1',
        'a = b = 1',
        'a = dict(1, 2)',
        'a = dict({[]: 1})',
        'a = {**{}}',
        'a = ' + '[' * 5000 + ']' * 5000,
        'a = (',
        'a = "\0"',
        'a = ' + '-' * 100_000 + '1',
        'a = ' + 'not ' * 100_000 + '1',
        'a = ' + '1+' * 100_000 + '1',
        'a = x' + '.x' * 100_000,
        'a = x' + '()' * 100_000,
        'a = x' + '[0]' * 100_000,
        'a = ' + 'lambda:' * 50_000 + '1',
        'a = ' + '9' * 5000,
        'a = "a" * 1000000000',
        'a = 10 ** 10000000',
    ],
)
def test_runs_nothing(text, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ConfigError, match='must be a config of plain values') as raised:
        parse_config(text)
    assert '\n' not in str(raised.value)
    assert not list(tmp_path.iterdir())


def test_a_large_text_is_not_parsed():
    """Python's syntax tree takes hundreds of bytes for each of the text."""
    with pytest.raises(ConfigError, match='must have at most 1 MB'):
        parse_config('a = [' + '[],' * 400_000 + ']')

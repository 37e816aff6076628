"""Whether Triton runs."""

import pytest

from mldr_kd_mm.utils.triton import _runs


@pytest.mark.parametrize('interpret', ['1', '0'])
def test_interpreter_of_older_versions(interpret, monkeypatch):
    """Triton for torch 2.6 and 2.7 has no ``knobs``."""
    triton = pytest.importorskip('triton')
    monkeypatch.delattr(triton, 'knobs', raising=False)
    monkeypatch.setenv('TRITON_INTERPRET', interpret)
    assert _runs.__wrapped__('cpu') == (interpret == '1')

"""The notebook in examples/ runs from its first cell to its last."""

import re
from pathlib import Path

import pytest

nbformat = pytest.importorskip('nbformat', reason='needs requirements/test.txt')
nbclient = pytest.importorskip('nbclient', reason='needs requirements/test.txt')

NOTEBOOK = Path(__file__).parents[1] / 'examples/distill_a_folder.ipynb'


def test_distill_a_folder(tmp_path, monkeypatch):
    """It runs with few images and epochs, installs nothing and was committed without outputs."""
    notebook = nbformat.read(NOTEBOOK, as_version=4)
    nbformat.validate(notebook)
    code = [cell for cell in notebook.cells if cell.cell_type == 'code']
    assert not any(cell.outputs or cell.execution_count for cell in code)
    for name, value in dict(IMAGES_PER_CLASS=10, EPOCHS=1).items():
        (cell,) = (cell for cell in code if f'\n{name} = ' in cell.source)
        cell.source = re.sub(rf'\n{name} = \d+', f'\n{name} = {value}', cell.source)
    # Jupyter's own files stay in the test's folder.
    for name in ('IPYTHONDIR', 'JUPYTER_CONFIG_DIR', 'JUPYTER_DATA_DIR', 'JUPYTER_RUNTIME_DIR'):
        monkeypatch.setenv(name, str(tmp_path / 'jupyter'))
    resources = dict(metadata=dict(path=str(tmp_path)))
    nbclient.NotebookClient(notebook, timeout=300, resources=resources).execute()
    install, images, train, compare, predict, export = code
    assert install.outputs == images.outputs == []
    printed = ''.join(output.get('text', '') for output in train.outputs + compare.outputs)
    assert re.search(r'student alone: +[\d.]+ %\nstudent distilled: +[\d.]+ %', printed)
    for cell in (compare, predict):
        assert any('image/png' in output.get('data', ()) for output in cell.outputs)
    assert 'student.safetensors: ' in export.outputs[0].text
    assert (tmp_path / 'student.safetensors').is_file()

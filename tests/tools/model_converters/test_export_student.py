"""Exported students load where this package cannot be imported."""

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from helpers import mldr, resnet, run_python, timm_resnet, train
from torch.testing import assert_close

from mldr_kd_mm.cli import main

EXPORTER = Path(__file__).parents[3] / 'tools/model_converters/export_student.py'

# Runs in a separate process; its argument is a folder with images and the two exported files.
WITHOUT_US = """
import sys
sys.modules['mldr_kd_mm'] = None  # any import of it raises
import torch
from pathlib import Path
torch.set_num_threads(1)
folder = Path(sys.argv[1])
pth, safetensors = str(folder / 'a.pth'), str(folder / 'b.safetensors')
{load}
images = torch.load(folder / 'images')
torch.save([model.eval()(images) for model in models], folder / 'logits')
"""
MMPRETRAIN = """
from mmengine.config import Config
from mmpretrain.apis import init_model
from mmpretrain.models import build_classifier
from safetensors.torch import load_file
models = [init_model(Config(dict(model={config})), pth, device='cpu'), build_classifier({config})]
models[1].load_state_dict(load_file(safetensors))
assert models[0]._dataset_meta['classes'] == tuple('0123456789')
"""
TIMM = """
import timm
models = [
    timm.create_model('{model_name}', num_classes={num_classes}, checkpoint_path=path)
    for path in (pth, safetensors)
]
"""
LOAD = {'mmpretrain': MMPRETRAIN.format(config=resnet()), 'timm': TIMM.format(**timm_resnet())}


@pytest.fixture(scope='module')
def runs(tmp_path_factory):
    """Return the checkpoints and models of two distillation runs."""
    folder = tmp_path_factory.mktemp('runs')
    return {
        kind: (train(mldr(student=student()), folder / kind).model, folder / kind / 'epoch_1.pth')
        for kind, student in (('mmpretrain', resnet), ('timm', timm_resnet))
    }


@pytest.fixture
def tool(capsys):
    """Return a function that runs the exporter and returns its exit code and output."""

    def run(*args):
        try:
            main(['export', *map(str, args)])
            code = 0
        except SystemExit as stop:
            code = stop.code
        return code, capsys.readouterr()

    return run


# TestCardsCode in apis/test_export.py does the same with a model card's code.
@pytest.mark.slow
@pytest.mark.parametrize('kind', ['mmpretrain', 'timm'])
def test_same_logits_without_us(runs, kind, tmp_path, tool):
    model, checkpoint = runs[kind]
    for name in ('a.pth', 'b.safetensors'):
        code, said = tool(checkpoint, tmp_path / name)
        assert code == 0, said.err
    images = torch.rand(4, 3, 32, 32)
    torch.save(images, tmp_path / 'images')
    script = WITHOUT_US.format(load=LOAD[kind])
    subprocess.run([sys.executable, '-c', script, tmp_path], check=True)

    expected = model.eval()(images)
    for logits in torch.load(tmp_path / 'logits'):
        assert torch.equal(logits, expected)


def test_runs_as_a_command(runs, tmp_path):
    output = run_python(EXPORTER, runs['timm'][1], tmp_path / 'student.pth')
    written = torch.load(tmp_path / 'student.pth')['state_dict']
    assert output.splitlines()[-2:] == [
        f"{tmp_path}/student.pth: {len(written)} tensors, the student's weights",
        f'{tmp_path}/student.md: model card',
    ]


def test_all_formats(runs, tmp_path, tool):
    out = tmp_path / 'student.safetensors'
    code, said = tool(runs['timm'][1], out, '--onnx', '--torch-export')
    assert code == 0, said.err
    names = ['student.md', 'student.onnx', 'student.pt2', 'student.safetensors']
    assert sorted(os.listdir(tmp_path)) == names
    for name in names[1:3]:
        said_of_it = re.search(rf'^{tmp_path}/{name}: (.*)$', said.out, re.MULTILINE)[1]
        words = r"logits differ from the student's by at most (\d\.\de[+-]\d\d)"
        assert float(re.fullmatch(words, said_of_it)[1]) <= 1e-4


def test_holds_the_averaged_weights(tmp_path, tool):
    hooks = [dict(type='EMAHook', momentum=0.5)]
    runner = train(mldr(), tmp_path / 'run', custom_hooks=hooks)
    assert tool(tmp_path / 'run/epoch_1.pth', tmp_path / 'student.pth')[0] == 0
    assert 'Weights: exponential moving average (EMA)' in (tmp_path / 'student.md').read_text()
    exported = torch.load(tmp_path / 'student.pth')['state_dict']
    ema = next(hook for hook in runner.hooks if type(hook).__name__ == 'EMAHook').ema_model
    assert_close(exported['head.fc.weight'], ema.module.student.head.fc.weight)
    assert not torch.equal(exported['head.fc.weight'], runner.model.student.head.fc.weight)


def test_bad_input_leaves_nothing_behind(runs, tmp_path, tool):
    out = tmp_path / 'student.pth'
    torch.save({'state_dict': {'backbone.weight': torch.ones(1)}}, tmp_path / 'plain.pth')
    torch.save([1, 2], tmp_path / 'list.pth')
    torch.save({'state_dict': {'student.weight': 1}}, tmp_path / 'odd.pth')
    for checkpoint, target, message in (
        ('no.pth', out, "checkpoint='no.pth': there is no such file"),
        (tmp_path / 'plain.pth', out, 'no weight is named student.*'),
        (tmp_path / 'list.pth', out, 'must hold a dict, it holds a list'),
        (tmp_path / 'odd.pth', out, 'no weight is named student.*'),
        (
            runs['timm'][1],
            tmp_path / 'student.doc',
            'must end with .pth, .safetensors, .pt2, .onnx',
        ),
    ):
        code, said = tool(checkpoint, target)
        assert code == 2
        assert said.err.startswith('error: ') and message in said.err
        assert said.err.count('\n') == 1
    assert sorted(os.listdir(tmp_path)) == ['list.pth', 'odd.pth', 'plain.pth']


def test_odd_notes_beside_the_weights(tmp_path, tool):
    weights = {'student.weight': torch.ones(1)}
    torch.save({'state_dict': weights, 'meta': [1]}, tmp_path / 'run.pth')
    code, said = tool(tmp_path / 'run.pth', tmp_path / 'student.pth')
    assert code == 0, said.err
    assert torch.load(tmp_path / 'student.pth')['meta'] == {}


@pytest.mark.parametrize('kind', ['file', 'folder', 'link', 'the checkpoint itself'])
def test_overwrites_nothing(runs, tmp_path, tool, kind):
    checkpoint, out = runs['timm'][1], tmp_path / 'student.pth'
    precious = tmp_path / 'precious.pth'
    precious.write_text('precious')
    if kind == 'file':
        precious.rename(out)
    elif kind == 'folder':
        out.mkdir()
        precious.rename(out / 'precious.pth')
    elif kind == 'link':
        out.symlink_to(precious)
    else:
        checkpoint = shutil.copy(checkpoint, out)
    before = snapshot(tmp_path)
    code, said = tool(checkpoint, out)
    assert code == 2
    assert said.err == f"error: out='{out}': exists already; remove it or name another file\n"
    assert snapshot(tmp_path) == before


def test_leaves_files_of_like_names(runs, tmp_path, tool):
    """Unfinished files have names of their own."""
    (tmp_path / 'student.pth.tmp').write_text('precious')
    assert tool(runs['timm'][1], tmp_path / 'student.pth')[0] == 0
    assert (tmp_path / 'student.pth.tmp').read_text() == 'precious'
    assert sorted(os.listdir(tmp_path)) == ['student.md', 'student.pth', 'student.pth.tmp']


@pytest.mark.parametrize('name', ['student.md', 'student.onnx', 'student.pt2'])
def test_overwrites_no_file_beside_the_weights(runs, tmp_path, tool, name):
    (tmp_path / name).write_text('precious')
    code, said = tool(runs['timm'][1], tmp_path / 'student.pth', '--onnx', '--torch-export')
    assert code == 2
    assert said.err == (
        f"error: out='{tmp_path / name}': exists already; remove it or name another file\n"
    )
    assert snapshot(tmp_path) == {tmp_path / name: b'precious'}


def snapshot(folder):
    return {path: path.read_bytes() for path in folder.rglob('*') if path.is_file()}

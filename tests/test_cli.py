import os
import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest
import timm
from helpers import image_folder

from mldr_kd_mm import cli

ROOT = Path(__file__).parents[1]


@pytest.fixture
def command(capfd):
    """A function that runs a command; returns its exit code, its stdout and its stderr."""

    def run(*args):
        capfd.readouterr()
        code = 0
        try:
            cli.main([str(arg) for arg in args])
        except SystemExit as end:
            code = end.code or 0
        return code, *capfd.readouterr()

    return run


def in_a_process(*args, cwd=None, **variables):
    here = {'OMP_NUM_THREADS': '1', 'PYTHONPATH': str(ROOT)}
    variables = {name: str(value) for name, value in variables.items()}
    start = [sys.executable, '-m', 'mldr_kd_mm.cli', *map(str, args)]
    return subprocess.run(
        start, cwd=cwd, env=os.environ | here | variables, capture_output=True, text=True
    )


@pytest.fixture(scope='module')
def folder(tmp_path_factory):
    return image_folder(tmp_path_factory.mktemp('images'), {'': 20})


@pytest.fixture(scope='module')
def arguments(folder):
    models = '--teacher test_vit --student test_resnet --image-size 32 --no-teacher-pretrained'
    return ['distill', *models.split(), '--data', str(folder), '--workers', '0', '--epochs', '1']


@pytest.mark.slow
def test_distill_info_export_report(command, arguments, tmp_path):
    work_dir = tmp_path / 'run'

    code, out, _ = command(*arguments, '--work-dir', work_dir)
    assert code == 0
    results = dict(line.split(':', 1) for line in out.splitlines()[-4:])
    assert {*results} == {'teacher', 'student', 'checkpoint', 'exported'}
    timm.create_model('test_resnet', num_classes=3, checkpoint_path=results['exported'].strip())

    code, out, _ = command('info', results['checkpoint'].strip())
    assert code == 0
    facts = dict(line.split(None, 1) for line in out.splitlines())
    assert facts['classes'] == '3: a, b, c'
    assert facts['epoch'] == '1'
    assert 'of the student of a distillation run' in facts['weights']

    student = tmp_path / 'student.safetensors'
    code, out, _ = command('export', work_dir / 'epoch_1.pth', student)
    assert code == 0 and str(student) in out
    assert command('export', work_dir / 'epoch_1.pth', student)[0] == 2

    code, out, _ = command('report', work_dir, '--samples', '4', '--out', tmp_path / 'report')
    assert code == 0 and out.splitlines()[-1] == f'{tmp_path / "report/report.html"}'
    page = (tmp_path / 'report/report.html').read_text()
    assert 'up to 4 samples' in page
    assert re.findall('no figures of its models[^<]*', page) == []


@pytest.mark.slow
def test_print_config_is_nothing_but_a_config(arguments, tmp_path):
    done = in_a_process(*arguments, '--print-config', cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    fields = {}
    exec(done.stdout, fields)
    assert fields['model']['type'] == 'Distiller'
    assert fields['train_cfg']['max_epochs'] == 1
    assert not (tmp_path / 'work_dirs').exists()


def test_info_of_models(command):
    code, out, _ = command('info', 'mobilenetv2_100')
    assert code == 0
    facts = dict(line.split(None, 1) for line in out.splitlines())
    assert facts['parameters'].startswith('3.50 M')
    assert facts['stage4'] == 'BCHW 1280 @ 7x7 at model.bn2'
    assert facts['feature'] == '1280 wide'


def test_info_of_the_installation(command):
    code, out, _ = command('info')
    assert code == 0
    assert 'mldr-kd' in out and 'torch' in out and 'C kernel of DFRA' in out


def mistake(result):
    code, _, stderr = result
    assert code == 2
    (line,) = [line for line in stderr.splitlines() if line.startswith('error: ')]
    assert stderr.splitlines()[-1] == line
    return line


@pytest.mark.parametrize(
    ('args', 'message'),
    [
        (['info', 'lost.pth'], "checkpoint='lost.pth': there is no such file"),
        (['info', 'test_resnot'], 'did you mean test_resnet'),
        (['export', 'lost.pth', 'student.pth'], 'there is no such file'),
        (['export', 'lost.pth', 'student.doc'], 'must end with .pth or .safetensors'),
    ],
)
def test_mistakes(command, args, message):
    assert message in mistake(command(*args))


@pytest.mark.parametrize(
    ('args', 'message'),
    [
        (['--data', '/nowhere'], 'there is no such folder'),
        (['--method', 'mldrr'], "method='mldrr': must be one of"),
        (['--epochs', '0'], 'epochs=0'),
        (['--val-fraction', '2'], 'val_fraction=2'),
        (['--teacher-checkpoint', 'lost.pth'], "teacher_checkpoint='lost.pth': there is no such"),
    ],
)
def test_mistakes_of_distill(command, arguments, tmp_path, monkeypatch, args, message):
    monkeypatch.chdir(tmp_path)
    assert message in mistake(command(*arguments, *args))
    assert not list(tmp_path.iterdir())


@pytest.mark.slow
def test_weights_that_cannot_be_fetched_are_one_line(arguments, tmp_path):
    there = [arg for arg in arguments if arg != '--no-teacher-pretrained']
    done = in_a_process(
        *there, '--work-dir', tmp_path / 'run', HF_HUB_OFFLINE='1', HF_HOME=tmp_path
    )
    line = mistake((done.returncode, done.stdout, done.stderr))
    assert 'its pretrained weights cannot be fetched' in line
    assert 'give teacher_checkpoint, or set teacher_pretrained=False' in line


def test_traceback(command):
    assert 'Traceback' in command('info', 'lost.pth', '--traceback')[2]


@pytest.mark.parametrize('name', ['distill', 'export', 'report', 'info'])
def test_help_has_examples_that_parse(command, name):
    code, out, _ = command(name, '--help')
    assert code == 0
    text = out.replace('\\\n', ' ')
    lines = [line.strip() for line in text.splitlines() if line.startswith('    mldr-kd ')]
    assert lines
    for line in lines:
        example = line.partition('   ')[0] if name == 'info' else line
        cli.make_parser().parse_args(shlex.split(example)[1:])


def test_the_command_is_installed_by_setup():
    assert "'mldr-kd = mldr_kd_mm.cli:main'" in (ROOT / 'setup.py').read_text()

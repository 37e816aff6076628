import contextlib
import functools
import json
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
from mldr_kd_mm.apis.distill import EXPORTS, Distilled
from mldr_kd_mm.apis.options import AUGMENTATIONS, VISUALIZERS
from mldr_kd_mm.evaluation.logged_run import ACCURACY, curve, read_records
from mldr_kd_mm.utils.errors import one_line_for

ROOT = Path(__file__).parents[1]


@pytest.fixture
def command(capfd):
    """Return a function that runs a command and returns its exit code, stdout and stderr."""

    def run(*args):
        capfd.readouterr()
        code = 0
        try:
            cli.main([str(arg) for arg in args])
        except SystemExit as end:
            code = end.code or 0
        return code, *capfd.readouterr()

    return run


def python(*args, cwd=None, **variables):
    """Run Python in a separate process."""
    here = {'OMP_NUM_THREADS': '1', 'PYTHONPATH': str(ROOT)}
    variables = {name: str(value) for name, value in variables.items()}
    command = [sys.executable, *map(str, args)]
    return subprocess.run(
        command, cwd=cwd, env=os.environ | here | variables, capture_output=True, text=True
    )


@pytest.fixture(scope='module')
def folder(tmp_path_factory):
    return image_folder(tmp_path_factory.mktemp('images'), {'': 20})


@pytest.fixture(scope='module')
def arguments(folder):
    models = '--teacher test_vit --student test_resnet --image-size 32 --no-teacher-pretrained'
    return ['distill', *models.split(), '--data', str(folder), '--workers', '0', '--epochs', '1']


@pytest.mark.parametrize('name', ['export', 'report', 'info', 'predict'])
def test_modules_are_imported_on_request(command, name, tmp_path, monkeypatch):
    (tmp_path / 'of_the_user.py').write_text('raise SystemError("was imported")')
    monkeypatch.syspath_prepend(tmp_path)
    out = [tmp_path / 'out.pth'] if name in ('export', 'predict') else []
    code, _, err = command(name, tmp_path / 'x.pth', *out, '--imports', 'of_the_user')
    assert code == 2 and '--imports of_the_user: cannot be imported: ' in err


def test_distill_info_export_report(command, arguments, tmp_path, monkeypatch):
    # Exporting to ONNX takes seconds; the report of test_report.py does it.
    monkeypatch.setattr('mldr_kd_mm.evaluation.efficiency.find_spec', lambda name: None)
    work_dir = tmp_path / 'run'

    code, out, err = command(*arguments, '--work-dir', work_dir, '--baseline')
    assert code == 0, err
    assert len(out.splitlines()) <= 45 and out.startswith('mldr-kd ')
    lines = (line.split(':', 1) for line in out.splitlines()[-8:])
    results = {name: value.strip() for name, value in lines}
    assert [*results] == [
        'teacher',
        'student',
        'baseline',
        'checkpoint',
        'exported',
        'folder',
        'next',
    ]
    assert f'next:       mldr-kd predict {work_dir}/student IMAGES\n' in out
    assert shlex.split(results['next']) == [
        'mldr-kd',
        'report',
        f'{work_dir}',
        f'{work_dir}/baseline',
    ]
    timm.create_model('test_resnet', num_classes=3, checkpoint_path=results['exported'])
    alone = (work_dir / 'baseline').glob('2*/vis_data/scalars.json')
    last = json.loads(next(alone).read_text().splitlines()[-1])
    assert results['baseline'].startswith(f'{last["accuracy/top1"]:.1f} %')
    accuracy = list(curve(read_records(work_dir), ACCURACY).values())[-1]
    assert results['student'].startswith(f'{accuracy:.1f} %')

    code, out, _ = command('info', results['checkpoint'])
    assert code == 0
    facts = dict(line.split(None, 1) for line in out.splitlines())
    assert f"student's accuracy/top1  {accuracy:.2f} after epoch 1" in out
    card = Path(results['folder'], 'README.md').read_text()
    assert f'accuracy/top1: last {accuracy:.2f}' in card
    assert not re.search('Validated on: .*val_fraction=None', card)
    assert command('info', work_dir)[1] == out
    assert re.search('classes +3: a, b, c', command('info', results['folder'])[1])
    assert facts['classes'] == '3: a, b, c'
    assert facts['epoch'] == '1'
    assert 'of the student of a distillation run' in facts['weights']

    student = tmp_path / 'student.safetensors'
    code, out, _ = command('export', work_dir / 'epoch_1.pth', student)
    assert code == 0 and str(student) in out
    assert command('export', work_dir / 'epoch_1.pth', student)[0] == 2

    images = Path(arguments[arguments.index('--data') + 1], '*/1?.png')
    code, out, _ = command('predict', work_dir / 'student', images)
    assert code == 0 and out.splitlines()[0].split() == ['path', 'class', 'probability']
    assert command('predict', work_dir, images) == (0, out, '')
    code, _, err = command('predict', work_dir / 'teacher', images)
    assert code == 2 and 'teacher/epoch_1.pth' in err and 'of a run without a teacher; mu' in err

    code, out, _ = command('report', work_dir, '--samples', '4', '--out', tmp_path / 'report')
    assert code == 0 and out.splitlines()[-1] == f'{tmp_path / "report/report.html"}'
    page = (tmp_path / 'report/report.html').read_text()
    assert 'up to 4 samples' in page
    assert re.findall('no figures of its models[^<]*', page) == []


@pytest.mark.parametrize(
    ('method', 'step'),
    [('embed', 'probe a/student --data images'), ('kd', 'predict a/student IMAGES')],
)
def test_last_lines(command, tmp_path, monkeypatch, method, step):
    """Paths are relative, the next command is one that the student can be used with."""
    monkeypatch.chdir(tmp_path)
    done = Distilled('a', 61.333, 62.0, 70.0, f'{tmp_path}/a/epoch_1.pth', 'a/s.pth', 'a/student')
    module = sys.modules['mldr_kd_mm.apis.distill']
    monkeypatch.setattr(module, 'distill', lambda **options: done)
    models = ('--teacher', 't', '--student', 's', '--data', 'images')
    code, out, _ = command('distill', *models, '--method', method)
    kind = ' by kNN' if method == 'embed' else ''
    assert code == 0 and out.splitlines()[1:] == [
        f'teacher:    70.0 %{kind}',
        f'student:    61.3 %{kind} (best epoch: 62.0 %)',
        'checkpoint: a/epoch_1.pth',
        'exported:   a/s.pth',
        'folder:     a/student',
        f'next:       mldr-kd {step}',
        'next:       mldr-kd report a',
    ]


def test_print_config_is_nothing_but_a_config(command, arguments, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    code, out, err = command(*arguments, '--print-config')
    assert code == 0, err
    fields = {}
    exec(out, fields)
    assert fields['model']['type'] == 'Distiller'
    assert fields['train_cfg']['max_epochs'] == 1
    assert not (tmp_path / 'work_dirs').exists()


def test_info_of_models(command):
    code, out, _ = command('info', 'mobilenetv2_100')
    assert code == 0
    facts = dict(line.split(None, 1) for line in out.splitlines())
    assert facts['parameters'].startswith('3.50 M')
    assert facts['stage4'] == 'BCHW 1280 @ 7x7 at model.bn2'
    assert facts['feature'] == '1280 channels'


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
        (['export', 'lost.pth', 'x.doc'], 'must end with .pth, .safetensors, .pt2, .onnx, or be a'),
        (
            ['export', 'lost.pth', 'folder', '--config', 'no.py'],
            "error: --config 'no.py': there is",
        ),
    ],
)
def test_mistakes(command, args, message):
    assert message in mistake(command(*args))


@pytest.mark.parametrize(
    ('args', 'message'),
    [
        (['--data', '/nowhere'], "--data '/nowhere': there is no such folder"),
        (
            ['--method', 'mldrr'],
            "--method 'mldrr': there is no configs/_base_/methods/mldrr.py; did you mean mldr",
        ),
        (['--epochs', '0'], '--epochs 0: must be'),
        (['--print-config', '--baseline'], 'error: --baseline: must not be set with --print-conf'),
        (['--print-config', '--export', 'best'], "--export 'best': must not be set with --print-"),
        (['--val-fraction', '2'], '--val-fraction 2'),
        (['--teacher-size', '0'], '--teacher-size 0: must be'),
        (['--teacher-checkpoint', 'lost.pth'], "--teacher-checkpoint 'lost.pth': there is no such"),
    ],
)
def test_mistakes_of_distill(command, arguments, tmp_path, monkeypatch, args, message):
    monkeypatch.chdir(tmp_path)
    assert message in mistake(command(*arguments, *args))
    assert not list(tmp_path.iterdir())


def test_weights_that_cannot_be_fetched_are_one_line(command, arguments, tmp_path, monkeypatch):
    monkeypatch.setattr('huggingface_hub.constants.HF_HUB_OFFLINE', True)
    monkeypatch.setattr('huggingface_hub.constants.HF_HUB_CACHE', str(tmp_path / 'hub'))
    there = [arg for arg in arguments if arg != '--no-teacher-pretrained']
    line = mistake(command(*there, '--work-dir', tmp_path / 'run'))
    assert 'its pretrained weights cannot be downloaded' in line
    assert 'give --teacher-checkpoint, or use --no-teacher-pretrained to' in line
    assert not [path for path in (tmp_path / 'run').rglob('*') if path.is_file()]


def test_options_are_named_as_the_command_does():
    parser = cli.make_parser().parse_args(['distill', *'--teacher a --student b --data c'.split()])
    reword = functools.partial(cli._name_options, parser.parser)
    assert reword("teacher='x/lr=1': no; use teacher_pretrained=False or teacher_checkpoint") == (
        "--teacher 'x/lr=1': no; use --no-teacher-pretrained or --teacher-checkpoint"
    )
    assert reword("data_root='d': no") == "--data 'd': no"
    assert reword("data_root: 'd' has one class") == "--data: 'd' has one class"
    assert reword('with --resume (resume=True), seed=1') == 'with --resume, --seed 1'
    for unchanged in (
        "model.teacher_checkpoint='a'",
        "there is no 'my/work_dir/a'",
        'the lr and amp',
    ):
        assert reword(unchanged) == unchanged


def test_each_default_is_in_the_help():
    parser = cli.make_parser().parse_args(['distill', *'--teacher a --student b --data c'.split()])
    for action in parser.parser._actions:
        if action.option_strings and action.nargs != 0 and not action.required:
            assert 'default: ' in action.help, action.option_strings
        if isinstance(action.default, (int, float, str)) and action.nargs is None:
            assert action.help.endswith(f'default: {action.default}'), action.option_strings


def test_a_reader_that_ends():
    """``mldr-kd info NAME | head -1``."""
    read, write = os.pipe()
    os.close(read)
    with os.fdopen(write, 'w') as stdout, contextlib.redirect_stdout(stdout):
        with pytest.raises(SystemExit) as ended, one_line_for(Exception, show_traceback=False):
            print('a line')
        assert ended.value.code == 141
        print('Python flushes the output when it ends')


def test_info_of_a_folder_of_images(command, folder):
    code, out, _ = command('info', folder)
    assert code == 0
    assert re.fullmatch(r'images +47 for training, 13 for validation\nclasses +3: a, b, c\n', out)


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


def test_the_choices_are_those_of_distill():
    arguments = ['distill', *'--teacher a --student b --data c'.split()]
    actions = cli.make_parser().parse_args(arguments).parser._actions
    choices = {action.dest: action.choices for action in actions if action.choices}
    assert choices == dict(
        augmentation=AUGMENTATIONS, export=EXPORTS, visualizer=tuple(VISUALIZERS)
    )
    assert {'mldr', 'kd', 'ofa'} < set(cli.distill._method_names())


def test_the_command_is_installed_by_setup():
    assert "'mldr-kd = mldr_kd_mm.cli:main'" in (ROOT / 'setup.py').read_text()


# The script that pip installs as `mldr-kd`.
CONSOLE_SCRIPT = """
import sys
from mldr_kd_mm.cli import main
if __name__ == '__main__':
    sys.exit(main())
"""
BY_FILE, BY_MODULE = ['mldr-kd'], ['-m', 'mldr_kd_mm']


@pytest.mark.parametrize(
    ('start', 'args', 'code'),
    [
        (BY_FILE, '--help', 0),
        (BY_FILE, 'export --help', 0),
        (BY_FILE, 'distill --augmentation none', 2),
        (BY_MODULE, '--version', 0),
        (BY_MODULE, 'distill --help', 0),
        (BY_MODULE, 'info --wrong', 2),
    ],
)
def test_answers_at_once(start, args, code, tmp_path):
    (tmp_path / 'mldr-kd').write_text(CONSOLE_SCRIPT)
    done = python('-X', 'importtime', *start, *args.split(), cwd=tmp_path)
    assert done.returncode == code
    assert 'mldr-kd' in (done.stdout if code == 0 else done.stderr)
    imported = {line.split('|')[-1].strip().split('.')[0] for line in done.stderr.splitlines()}
    assert 'mldr_kd_mm' in imported
    assert not imported & {'torch', 'numpy', 'mmengine', 'mmpretrain', 'timm', 'matplotlib'}


# Processes that import the package without being the command; importing torch fails.
IMPORT = "import sys; sys.modules['torch'] = None; import mldr_kd_mm"
SPAWN = """
import multiprocessing, sys
def work():
    import mldr_kd_mm
if __name__ == '__main__':
    sys.argv[0] = 'mldr-kd'  # spawned processes inherit it
    process = multiprocessing.get_context('spawn').Process(target=work)
    process.start()
    process.join()
    sys.exit(process.exitcode)
else:
    sys.modules['torch'] = None
"""


@pytest.mark.parametrize(
    'start',
    [
        ['script.py'],
        ['-c', IMPORT],
        ['-m', 'script', 'mldr_kd_mm'],
        ['-m', 'pack.age', 'mldr_kd_mm'],
        ['-m', 'pytest', '-p', 'no:cacheprovider', 'test_it.py'],
        ['spawn.py'],
    ],
    ids=' '.join,
)
def test_any_other_process_imports_everything(start, tmp_path):
    (tmp_path / 'pack').mkdir()
    for name in ('script.py', 'test_it.py', 'pack/__init__.py', 'pack/age.py'):
        (tmp_path / name).write_text(IMPORT)
    (tmp_path / 'spawn.py').write_text(SPAWN)
    done = python(*start, cwd=tmp_path)
    assert done.returncode != 0
    assert 'import of torch halted' in done.stdout + done.stderr


SCRIPT = """
import sys
import mldr_kd_mm
assert not {'timm', 'sklearn', 'matplotlib'} & {*sys.modules}, 'half a second or more each'
from mmengine.config import Config
from mmpretrain.registry import MODELS

assert 'Distiller' in MODELS.module_dict
open('config.py', 'w').write("_base_ = 'mldr_kd_mm::mldr/deit_to_mobilenet_c100.py'")
assert Config.fromfile('config.py').model.type == 'Distiller'
assert {*mldr_kd_mm.__all__} <= {*dir(mldr_kd_mm)}
"""
USERS = """
from mldr_kd_mm import DFRALoss, datasets
import mldr_kd_mm
names = {}
exec('from mldr_kd_mm import *', names)
assert {*mldr_kd_mm.__all__} < {*names} and {*mldr_kd_mm.__all__} <= {*dir(mldr_kd_mm)}
assert datasets.Digits and not hasattr(mldr_kd_mm, 'lost')
open('found', 'w').write(DFRALoss.__name__)
"""
CONFIG = """
custom_imports = dict(imports=['users'])
_base_ = 'mldr_kd_mm::_base_/models/resnet18_32px.py'
"""


def test_public_names_in_a_script(tmp_path):
    (tmp_path / 'script.py').write_text(SCRIPT)
    done = python('script.py', cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert not done.stdout, 'the imports must not print anything, as --print-config shows'


@pytest.mark.slow
def test_public_names_in_a_users_module(tmp_path):
    (tmp_path / 'users.py').write_text(USERS)
    (tmp_path / 'model.py').write_text(CONFIG)
    (tmp_path / 'mldr-kd').write_text(CONSOLE_SCRIPT)
    start = ['mldr-kd', 'info', 'model.py']
    done = python(*start, cwd=tmp_path, PYTHONPATH=f'{ROOT}:{tmp_path}')
    assert done.returncode == 0, done.stderr
    assert (tmp_path / 'found').read_text() == 'DFRALoss'

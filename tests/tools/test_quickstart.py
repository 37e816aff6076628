"""A short quickstart: its table and figure show the logged values."""

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import matplotlib.image
import pytest
from mmengine.config import Config

from mldr_kd_mm.registry import DATASETS, MODELS

ROOT = Path(__file__).parents[2]
CONFIGS = ROOT / 'configs/quickstart'
METHODS = ['teacher', 'scratch', 'mldr']

pytest.importorskip('sklearn', reason='needs scikit-learn')


@pytest.fixture(scope='module')
def finished(tmp_path_factory):
    """Run the quickstart with one seed and two epochs; return its stdout and work directory."""
    here = tmp_path_factory.mktemp('quickstart')
    old = here / 'work_dirs/quickstart/teacher/old.txt'
    other = here / 'work_dirs/other.txt'
    for path in (old, other):
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text('mine')
    run = subprocess.run(
        [sys.executable, ROOT / 'tools/quickstart.py', '--seeds', '1', '--epochs', '2'],
        cwd=here,
        env=os.environ | {'COLUMNS': '80'},
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert run.returncode == 0, run.stdout + run.stderr
    assert not old.exists(), 'an earlier quickstart is replaced'
    assert other.exists(), 'nothing else is touched'
    return run.stdout, here / 'work_dirs/quickstart'


def logged(work_dir, method, key):
    """Return the values that a method's runs logged under a name, one list per seed."""
    paths = sorted(work_dir.glob(f'{method}*/*/vis_data/scalars.json'))
    records = [[json.loads(line) for line in path.read_text().splitlines()] for path in paths]
    return [[record[key] for record in run if key in record] for run in records]


@pytest.mark.slow
def test_table_is_what_the_runs_logged(finished):
    output, work_dir = finished
    for row, method in [('teacher', 'teacher'), ('student alone', 'scratch'), ('MLDR-KD', 'mldr')]:
        (accuracies,) = logged(work_dir, method, 'accuracy/top1')
        assert all(0 < value <= 100 for value in accuracies)
        cells = re.search(rf'^│ {row},.*│ *(.*) │ *(.*) │$', output, re.MULTILINE).groups()
        assert cells == (f'{accuracies[-1]:.1f}', f'{max(accuracies):.1f}')


@pytest.mark.slow
def test_students_learn_from_the_teacher(finished):
    _, work_dir = finished
    (accuracies,) = logged(work_dir, 'teacher', 'accuracy/top1')
    assert logged(work_dir, 'mldr', 'teacher/accuracy/top1') == [accuracies[-1:]]
    assert len(logged(work_dir, 'mldr', 'loss_dfra_fused')[0]) == 2
    assert logged(work_dir, 'scratch', 'loss_dfra_fused') == [[]]


@pytest.mark.slow
def test_output_is_plain_lines(finished):
    output, _ = finished
    assert not re.search(r'[\x00-\x09\x0b-\x1f\x7f]', output)
    for run in ('teacher', 'scratch_seed0', 'mldr_seed0'):
        assert re.search(rf'^{run}: 2 epochs, \d+\.\d %$', output, re.MULTILINE)


@pytest.mark.slow
def test_picture(finished):
    output, work_dir = finished
    assert 'picture: work_dirs/quickstart/curves.png' in output.splitlines()
    image = matplotlib.image.imread(work_dir / 'curves.png')[..., :3]
    for panel in (image[: len(image) // 2], image[len(image) // 2 :]):
        colors = panel.reshape(-1, 3)
        saturation = colors.max(1) - colors.min(1)
        assert (saturation > 0.5).sum() > 100, 'curves in colour'


@pytest.mark.slow
def test_failing_run_is_one_line(tmp_path):
    (tmp_path / 'sklearn.py').write_text('')
    path = os.pathsep.join([str(tmp_path), os.environ.get('PYTHONPATH', '')])
    run = subprocess.run(
        [sys.executable, ROOT / 'tools/quickstart.py', '--seeds', '1', '--epochs', '1'],
        cwd=tmp_path,
        env=os.environ | {'PYTHONPATH': path},
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert run.returncode == 1
    (line,) = run.stderr.splitlines()
    assert re.match(
        r'error: \w+ ended with code 2, see work_dirs/quickstart/\w+/output.txt: ', line
    )
    assert 'Digits needs scikit-learn' in line


def test_table(read_tool, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    accuracies = dict(teacher=[90, 99, 98], scratch_seed0=[70, 72, 71], scratch_seed1=[60, 65, 66])
    accuracies |= dict(mldr_seed0=[80, 82, 81], mldr_seed1=[79, 80, 80])
    for name, values in accuracies.items():
        log = Path('work_dirs/quickstart', name, '20260101_000000/vis_data/scalars.json')
        log.parent.mkdir(parents=True)
        records = [{'accuracy/top1': value, 'step': i} for i, value in enumerate(values)]
        # The Runner may be writing a line.
        log.write_text(''.join(f'{json.dumps(record)}\n' for record in records) + '{"accura')
    quickstart = read_tool('quickstart')
    table = quickstart['make_table'](quickstart['plan'](seeds=2, epochs=3))
    cells = [list(column.cells)[i] for i in range(3) for column in table.columns[1:]]
    assert cells == ['98.0', '99.0', '68.5 ± 3.5', '69.0 ± 4.2', '80.5 ± 0.7', '81.0 ± 1.4']


def test_each_seed_has_its_runs(read_tool):
    runs = read_tool('quickstart')['plan'](seeds=2, epochs=None)
    commands = {Path(run.command()[4]).name: run.command() for run in runs}
    planned = {name: Path(command[2]).stem for name, command in commands.items()}
    assert planned == dict(
        teacher='teacher',
        scratch_seed0='scratch',
        scratch_seed1='scratch',
        mldr_seed0='mldr',
        mldr_seed1='mldr',
    )
    teacher = 'model.teacher_checkpoint=work_dirs/quickstart/teacher/epoch_40.pth'
    for name, command in commands.items():
        assert f'randomness.seed={int(name.endswith("1"))}' in command
        assert f'train_cfg.max_epochs={40 if name == "teacher" else 80}' in command
        assert (teacher in command) == name.startswith('mldr')


@pytest.mark.parametrize('option', ['--seeds', '--epochs'])
def test_refuses(tool, option):
    code, stderr = tool('quickstart', option, '0')
    assert code == 2
    assert f"argument {option}: must be a positive integer, got '0'" in stderr


@pytest.mark.parametrize('method', METHODS)
def test_config_builds(method):
    cfg = Config.fromfile(CONFIGS / f'{method}.py')
    images = 1200 if method == 'teacher' else 100
    assert len(DATASETS.build(cfg.train_dataloader.dataset)) == images
    test_set = DATASETS.build(cfg.val_dataloader.dataset)
    assert len(test_set) == 597
    if method == 'mldr':
        cfg.model.teacher_checkpoint = None
    cfg.model.data_preprocessor = cfg.data_preprocessor
    model = MODELS.build(cfg.model)
    image = test_set[0]['inputs'][None].float()
    assert model.eval()(image, mode='tensor').shape == (1, 10)


def test_both_students_have_one_recipe():
    alone, distilled = (Config.fromfile(CONFIGS / f'{name}.py') for name in ('scratch', 'mldr'))
    assert alone.pop('model') == distilled.model.pop('student')
    distilled.pop('model')
    distilled.pop('method')
    distilled.pop('search_space')
    assert alone.to_dict() == distilled.to_dict()
    teacher = Config.fromfile(CONFIGS / 'teacher.py')
    assert Config.fromfile(CONFIGS / 'mldr.py').model.teacher == teacher.model

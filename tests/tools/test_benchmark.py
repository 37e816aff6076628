"""The benchmark on a few digits: its tables show the logged values, and recipes never mix."""

import csv
import fcntl
import hashlib
import json
import os
import re
import shutil
import signal
import statistics
import subprocess
import sys
import time
from argparse import Namespace
from importlib import metadata
from pathlib import Path
from pprint import pformat

import helpers
import mmengine
import pytest
from mmengine.config import Config

from mldr_kd_mm.evaluation.statistics import paired_difference

ROOT = Path(__file__).parents[2]
TOOL = ROOT / 'tools/benchmark.py'
WORK_DIR = Path('work_dirs/benchmark')
PAIR = WORK_DIR / 'vit_to_resnet'
TEACHER = Path('work_dirs/small_vit')
RUNS = [(method, seed) for method in ('scratch', 'dfra') for seed in (0, 1)]
COMMAND = ['--pairs', 'vit_to_resnet', '--methods', 'scratch', 'dfra', '--seeds', '2']
DFRA = dict(loss=dict(type='DFRALoss'), student=['logits'], teacher='logits', name='dfra')

pytest.importorskip('sklearn', reason='needs scikit-learn')


def put(path, **fields):
    """Write a config."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text('\n'.join(f'{name} = {pformat(value)}' for name, value in fields.items()))


def settings(model, **kwargs):
    """Return the settings of a run on 40 digits, without a work directory."""
    config = helpers.runner_config(model, Path('of/no/use'), **kwargs)
    del config['work_dir'], config['experiment_name']
    return config | {'data_preprocessor': helpers.NORMALIZATION}


def put_project(root):
    """Write a pair, a method and a teacher, as in a user's own project."""
    model = dict(type='Distiller', teacher=helpers.vit(), student=helpers.resnet())
    model |= dict(teacher_checkpoint=f'{TEACHER}/epoch_1.pth', input_size=(3, 32, 32))
    put(root / 'configs/pairs/vit_to_resnet.py', **settings(model, max_epochs=2))
    put(root / 'configs/_base_/methods/dfra.py', method=dict(losses=[DFRA]))
    put(root / 'configs/teachers/small_vit.py', **settings(helpers.vit()))


def start(*args, cwd):
    """Start the benchmark as a user does."""
    return subprocess.Popen(
        [sys.executable, TOOL, *args],
        cwd=cwd,
        env=os.environ | {'OMP_NUM_THREADS': '1'},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        # In a shell without job control, background processes ignore Ctrl-C.
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
    )


def run(*args, cwd):
    """Run the benchmark to its end; return its exit code, stdout and stderr."""
    process = start(*args, cwd=cwd)
    stdout, stderr = process.communicate(timeout=400)
    return process.returncode, stdout, stderr


def logged(work_dir, key):
    """Return the values that a run logged under a name."""
    logs = sorted(work_dir.glob('*/vis_data/scalars.json'))
    records = [json.loads(line) for log in logs for line in log.read_text().splitlines()]
    return [record[key] for record in records if key in record]


def rows(work_dir):
    """Return the rows of results.csv, by method and seed."""
    with (work_dir / 'results.csv').open(newline='') as file:
        return {(row['method'], int(row['seed'])): row for row in csv.DictReader(file)}


def tree(root):
    """Return all files and their modification times."""
    return {path: path.stat().st_mtime_ns for path in root.rglob('*') if path.is_file()}


def without_results(files):
    names = ('results.', '.written.json')
    return {path: time for path, time in files.items() if not path.name.startswith(names)}


def run_forked(*args):
    """Run the benchmark, which forks its runs, in a warm process; return its output."""
    (output,) = helpers.run_ranks([Path(__file__).with_name('forked_benchmark.py'), *args])
    return output


@pytest.fixture(scope='module')
def finished(tmp_path_factory):
    """Benchmark a project; return its directory and the output."""
    root = tmp_path_factory.mktemp('benchmark')
    put_project(root)
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(root)
        return root, run_forked(*COMMAND)


@pytest.fixture
def project(tmp_path, monkeypatch):
    """Change to a project without any runs."""
    put_project(tmp_path)
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.fixture
def benchmarked(finished, tmp_path, monkeypatch):
    """Change to a copy of the finished project."""
    root = tmp_path / 'copy'
    shutil.copytree(finished[0], root)
    monkeypatch.chdir(root)
    return root


@pytest.fixture
def benchmark(read_tool):
    """Return the imported tool."""
    return Namespace(**read_tool('benchmark'))


def make_plan(benchmark, *args):
    return benchmark.Plan(benchmark.parse_args(list(args)))


# Results


def test_csv_is_what_the_runs_logged(finished):
    root, _ = finished
    table = rows(root / WORK_DIR)
    assert sorted(table) == sorted(RUNS)
    weights = hashlib.sha256((root / TEACHER / 'epoch_1.pth').read_bytes()).hexdigest()
    for (method, seed), row in table.items():
        work_dir = root / PAIR / method / f'seed{seed}'
        accuracies = logged(work_dir, 'accuracy/top1')
        assert len(accuracies) == 2
        assert float(row['last']) == accuracies[-1]
        assert float(row['best']) == max(accuracies)
        assert row['epochs'] == '2'
        assert 0 < float(row['seconds']) < 300
        assert 300 < float(row['memory']) < 20_000
        distilled = method == 'dfra'
        assert row['teacher_sha256'] == (weights if distilled else '')
        measured = logged(work_dir, 'teacher/accuracy/top1')
        assert [row['teacher']] == ([str(*measured)] if distilled else [''])
        assert row['torch'] == metadata.version('torch')
        assert row['mmengine'].split()[-1] == mmengine.__version__
        assert json.loads((work_dir / 'benchmark/result.json').read_text()).keys() == row.keys()
        # The Runner saved two checkpoints, so that a stopped run could continue, and had this seed.
        saved = sorted(path.name for path in work_dir.glob('*.pth'))
        assert saved == ['epoch_1.pth', 'epoch_2.pth']
        cfg = Config.fromfile(next(work_dir.glob('*/vis_data/config.py')))
        assert cfg.randomness.seed == seed
    identities = {key: row['settings'] for key, row in table.items()}
    assert len({*identities.values()}) == 4, 'each method and seed has its own settings'


def test_teacher_is_trained_first_and_teaches(finished):
    root, stdout = finished
    announced = '4 runs in work_dirs/benchmark, 0 of them finished; teachers to train first: '
    assert f'{announced}small_vit' in stdout.splitlines()
    accuracies = logged(root / TEACHER, 'accuracy/top1')
    assert len(accuracies) == 1
    for seed in (0, 1):
        work_dir = root / PAIR / 'dfra' / f'seed{seed}'
        assert logged(work_dir, 'teacher/accuracy/top1') == accuracies
        assert logged(work_dir, 'loss_dfra_logits')
    assert not logged(root / PAIR / 'scratch/seed0', 'loss_dfra_logits')


def test_output_is_plain_lines(finished):
    root, stdout = finished
    assert not re.search(r'[\x00-\x09\x0b-\x1f\x7f]', stdout)
    for method, seed in RUNS:
        accuracy = logged(root / PAIR / method / f'seed{seed}', 'accuracy/top1')[-1]
        line = f'{method} vit_to_resnet seed{seed}: 2 epochs, {accuracy:.1f} %'
        assert line in stdout.splitlines()


def test_markdown_is_what_the_runs_logged(finished):
    root, stdout = finished
    text = (root / WORK_DIR / 'results.md').read_text()
    assert text in stdout

    def summary(values):
        return f'{statistics.mean(values):.2f} ± {statistics.stdev(values):.2f}'

    curves = {run: logged(root / PAIR / run[0] / f'seed{run[1]}', 'accuracy/top1') for run in RUNS}
    last = {name: {s: curves[name, s][-1] for s in (0, 1)} for name in ('scratch', 'dfra')}
    difference = str(paired_difference(last['dfra'], last['scratch']))
    for method, expected in [('scratch', ''), ('dfra', difference)]:
        last = summary([curves[method, seed][-1] for seed in (0, 1)])
        best = summary([max(curves[method, seed]) for seed in (0, 1)])
        assert f'| {method} | {last} | {best} | {expected} |  | a | 2 | ' in text
    (accuracy,) = logged(root / TEACHER, 'accuracy/top1')
    assert f'Teacher: {accuracy:.2f} %, {TEACHER}/epoch_1.pth, SHA-256 ' in text
    assert f'    python tools/benchmark.py {" ".join(COMMAND)}\n' in text
    assert '- seeds: 0, 1\n' in text
    git = ['git', '-C', ROOT, 'rev-parse', 'HEAD']
    commit = subprocess.run(git, capture_output=True, text=True).stdout.strip() or 'mldr_kd_mm'
    assert re.search(f'^- commit: {commit}', text, re.MULTILINE)


# Repeated and continued benchmarks


def test_finished_run_is_not_repeated(benchmarked, tool):
    before = without_results(tree(benchmarked))
    assert tool('benchmark', *COMMAND) == (0, '')
    assert without_results(tree(benchmarked)) == before


def test_table_only(benchmarked, tool):
    table = rows(WORK_DIR)
    for path in WORK_DIR.glob('results.*'):
        path.unlink()
    shutil.rmtree('configs')
    (PAIR / 'dfra/seed1/benchmark/result.json').unlink()
    before = tree(benchmarked)
    assert tool('benchmark', '--table-only') == (0, '')
    after = tree(benchmarked)
    written = {path.name for path in after.keys() - before.keys()}
    assert written == {'results.md', 'results.csv', 'results.png'}
    assert without_results(after) == without_results(before)
    del table['dfra', 1]
    assert rows(WORK_DIR) == table


def test_results_of_older_versions_are_read(benchmarked, tool):
    """They have neither the identity nor the command, but the arguments of the command line."""
    file = PAIR / 'dfra/seed1/benchmark/result.json'
    content = json.loads(file.read_text())
    del content['settings'], content['command']
    old = dict(pair_argument='vit_to_resnet', method_argument='dfra', cfg_options='')
    file.write_text(json.dumps(content | old))
    assert tool('benchmark', '--table-only') == (0, '')
    assert rows(WORK_DIR)['dfra', 1]['last'] == str(content['last'])


def test_interrupted_validation_is_made_up_for(benchmarked):
    """The run was stopped after it saved the last epoch, before it logged the validation."""
    work_dir = PAIR / 'scratch/seed1'
    (work_dir / 'benchmark/result.json').unlink()
    (first,) = work_dir.glob('*/vis_data')
    lines = (first / 'scalars.json').read_text().splitlines(keepends=True)
    assert 'accuracy/top1' in lines[-1]
    (first / 'scalars.json').write_text(''.join(lines[:-1]) + '{"accuracy')
    others = {path: time for path, time in tree(PAIR).items() if work_dir not in path.parents}
    run_forked(*COMMAND)
    assert {path: path.stat().st_mtime_ns for path in others} == others
    _, second = sorted(work_dir.glob('*/vis_data'))
    records = [json.loads(line) for line in (second / 'scalars.json').read_text().splitlines()]
    assert {record['epoch'] for record in records if 'epoch' in record} == {2}
    (accuracy,) = (record['accuracy/top1'] for record in records if 'accuracy/top1' in record)
    row = rows(WORK_DIR)['scratch', 1]
    assert float(row['last']) == accuracy
    before = json.loads(lines[len(lines) // 2 - 1])
    assert float(row['best']) == max(accuracy, before['accuracy/top1'])
    took = [
        (part / 'scalars.json').stat().st_mtime - (part / 'config.py').stat().st_mtime
        for part in (first, second)
    ]
    assert float(row['seconds']) == pytest.approx(sum(took), abs=0.06)


@pytest.mark.slow
def test_stopped_benchmark_goes_on(project, tool):
    arguments = ['--pairs', 'vit_to_resnet', '--methods', 'scratch', '--seeds', '1']
    arguments += ['--cfg-options', 'train_cfg.max_epochs=20']
    process = start(*arguments, cwd=project)
    work_dir = PAIR / 'scratch/seed0'
    deadline = time.monotonic() + 120
    while len(logged_so_far(work_dir)) < 3:
        assert process.poll() is None and time.monotonic() < deadline
        time.sleep(0.05)
    process.send_signal(signal.SIGINT)
    _, stderr = process.communicate(timeout=60)
    assert process.returncode == 130
    assert stderr == 'stopped; run the same command to continue\n'
    stopped_at = logged_so_far(work_dir)
    time.sleep(1)
    assert logged_so_far(work_dir) == stopped_at, 'the run must end, too'
    assert not (work_dir / 'benchmark/result.json').exists()

    assert tool('benchmark', *arguments) == (0, '')
    parts = sorted(work_dir.glob('*/vis_data/scalars.json'))
    assert len(parts) == 2
    epochs = [
        [
            record['step']
            for record in map(json.loads, part.read_text().splitlines())
            if 'accuracy/top1' in record
        ]
        for part in parts
    ]
    assert epochs[0][-1] + 1 == epochs[1][0]
    assert sorted(epochs[0] + epochs[1]) == list(range(1, 21))
    result = json.loads((work_dir / 'benchmark/result.json').read_text())
    assert result['epochs'] == 20
    assert '--cfg-options train_cfg.max_epochs=20' in (WORK_DIR / 'results.md').read_text()


def logged_so_far(work_dir):
    """Return the accuracies in complete lines of a run's log."""
    logs = work_dir.glob('*/vis_data/scalars.json')
    lines = [line for log in logs for line in log.read_text().splitlines(keepends=True)]
    return [line for line in lines if line.endswith('\n') and 'accuracy/top1' in line]


@pytest.mark.slow
def test_failing_run_does_not_stop_the_others(project, benchmark):
    put(Path('configs/teachers/small_vit.py'), **settings(helpers.vit(nonsense=1)))
    arguments = ['--pairs', 'configs/pairs/vit_to_resnet.py', '--seeds', '1']
    arguments += ['--methods', 'dfra', 'scratch', '--cfg-options', 'train_cfg.val_begin=1']
    code, stdout, stderr = run(*arguments, cwd=project)
    assert code == 1
    failed, waiting = stderr.splitlines()
    said = f'error: teacher small_vit ended with code 2, see {TEACHER}/output.txt: error: model.'
    assert failed.startswith(said)
    assert 'nonsense' in failed
    assert (
        waiting == 'error: dfra vit_to_resnet seed0 did not start, since teacher small_vit failed'
    )
    assert not (PAIR / 'dfra').exists()
    assert 'teacher small_vit: failed' in stdout.splitlines()
    assert re.search('^scratch vit_to_resnet seed0: 2 epochs', stdout, re.MULTILINE)
    assert list(rows(WORK_DIR)) == [('scratch', 0)]
    text = (WORK_DIR / 'results.md').read_text()
    assert 'Teacher: not measured.' in text
    assert f'    python tools/benchmark.py {" ".join(arguments)}\n' in text
    # The teacher was never trained, so its config may be corrected.
    put_project(project)
    make_plan(benchmark, *arguments).check()


# Refusals


@pytest.fixture
def refused(tool):
    """Return a function that runs the benchmark, which must refuse, and returns its error."""

    def run_tool(*args):
        before = tree(Path())
        code, stderr = tool('benchmark', *args)
        (line,) = stderr.splitlines()
        assert code == 2
        assert tree(Path()) == before, 'nothing is changed'
        return line

    return run_tool


def break_off(work_dir):
    """Make a finished run look like a stopped one."""
    (work_dir / 'benchmark/result.json').unlink()


REMEDY = 'undo the change, use another --work-dir, or remove that directory'


@pytest.mark.parametrize('broken', [False, True])
def test_refuses_another_recipe_than_the_stored_one(benchmarked, refused, broken):
    if broken:
        break_off(PAIR / 'scratch/seed0')
    assert refused(*COMMAND, '--cfg-options', 'optim_wrapper.optimizer.lr=0.5') == (
        'error: optim_wrapper.optimizer.lr was 0.01 in the stored run '
        f'{PAIR}/scratch/seed0, and would be 0.5; {REMEDY}'
    )


def test_refuses_another_teacher_than_the_stored_one(benchmarked, refused):
    path = TEACHER / 'epoch_1.pth'
    old = hashlib.sha256(path.read_bytes()).hexdigest()
    path.write_bytes(b'another')
    new = hashlib.sha256(b'another').hexdigest()
    assert refused(*COMMAND) == (
        f"error: teacher_sha256 was '{old}' in the stored run {PAIR}/dfra/seed0, "
        f"and would be '{new}'; {REMEDY}"
    )


def test_refuses_to_add_to_another_recipe(benchmarked, refused, tool):
    """A run of another method of the pair is stored, and the table would show both."""
    shutil.rmtree(PAIR / 'scratch')
    arguments = ['--pairs', 'vit_to_resnet', '--methods', 'scratch', '--seeds', '1']
    assert refused(*arguments, '--cfg-options', 'train_dataloader.batch_size=5') == (
        'error: train_dataloader.batch_size is 5 in the pair vit_to_resnet, and 10 in the stored '
        f'run {PAIR}/dfra/seed0, but the methods of a pair share one recipe; use another '
        '--work-dir, or remove that directory'
    )


def test_table_refuses_runs_of_different_recipes(benchmarked, refused):
    config = PAIR / 'scratch/seed1/benchmark/config.py'
    config.write_text(config.read_text().replace("'lr': 0.01", "'lr': 0.5"))
    assert refused('--table-only') == (
        f'error: optim_wrapper.optimizer.lr is 0.01 in the stored run {PAIR}/dfra/seed0, and 0.5 '
        f'in the stored run {PAIR}/scratch/seed1, but the methods of a pair share one recipe; '
        'remove one of them'
    )


def test_refuses_seeds_of_another_version_of_the_method(benchmarked, refused):
    """Its file was changed, and the runs to come, of fewer seeds, would not be compared."""
    config = PAIR / 'dfra/seed1/benchmark/config.py'
    config.write_text(config.read_text().replace("'DFRALoss'", "'KDLoss'"))
    message = "error: model.losses.0.loss.type is 'KDLoss' in the stored run {0}/dfra/seed1, and "
    message += "'DFRALoss' in {0}/dfra/seed0, but the seeds of a method share its settings; "
    for arguments in (['--table-only'], [*COMMAND[:-1], '1']):
        assert refused(*arguments).startswith(message.format(PAIR))


@pytest.mark.parametrize(
    ('content', 'difference'),
    [
        (
            dict(optim_wrapper=dict(optimizer=dict(lr=0.5))),
            'optim_wrapper.optimizer.lr is 0.01 in the pair vit_to_resnet, and 0.5',
        ),
        (
            dict(model=dict(student=dict(backbone=dict(depth=34)))),
            'model.student.backbone.depth is 18 in the pair vit_to_resnet, and 34',
        ),
        (
            dict(train_cfg=dict(val_begin=2)),
            'train_cfg.val_begin is not set in the pair vit_to_resnet, and 2',
        ),
    ],
)
def test_refuses_a_method_that_changes_the_recipe(project, refused, content, difference):
    put(project / 'mine/fast.py', method=dict(losses=[DFRA]), **content)
    arguments = ['--pairs', 'vit_to_resnet', '--methods', 'scratch', 'mine/fast.py']
    assert refused(*arguments) == (
        f'error: {difference} in its method fast, but the methods of a pair share one recipe; '
        'remove it from mine/fast.py'
    )


def test_method_may_bring_its_own_code(project, benchmark):
    put(
        project / 'mine/own.py',
        custom_imports=dict(imports=['colorsys']),
        method=dict(losses=[DFRA], student_recorder=dict(type='FeatureRecorder', taps='stages')),
        temperature=4.0,
    )
    plan = make_plan(benchmark, '--pairs', 'vit_to_resnet', '--methods', 'scratch', 'mine/own.py')
    plan.check()
    own = plan.students[-1].settings
    assert own['custom_imports'] == dict(imports=['colorsys'])
    assert own['model']['student_recorder'] == dict(type='FeatureRecorder', taps='stages')
    assert 'temperature' not in own


@pytest.mark.parametrize(
    ('arguments', 'message'),
    [
        (['--pairs', 'a', '--methods', 'dfra'], "pair='a': there is no configs/pairs/a.py"),
        (
            ['--pairs', 'vit_to_resnet', '--methods', 'dfrb'],
            "method='dfrb': there is no configs/_base_/methods/dfrb.py; did you mean dfra",
        ),
        (
            ['--pairs', 'configs/teachers/small_vit.py', '--methods', 'dfra'],
            "pair='configs/teachers/small_vit.py': its model has no teacher",
        ),
        (
            ['--pairs', 'vit_to_resnet', '--methods', 'dfra', 'configs/_base_/methods/dfra.py'],
            "method='configs/_base_/methods/dfra.py': 'dfra' is given twice",
        ),
        (
            [*COMMAND, '--cfg-options', 'model.teacher_checkpoint=work_dirs/other/epoch_1.pth'],
            "model.teacher_checkpoint='work_dirs/other/epoch_1.pth': there is no such file, and no "
            'configs/teachers/other.py to train it with',
        ),
        (
            [*COMMAND, '--cfg-options', 'train_cfg.max_epochs=3'],
            "model.teacher_checkpoint='work_dirs/small_vit/epoch_1.pth': there is no such file; "
            'configs/teachers/small_vit.py would end with epoch_3.pth',
        ),
        (
            [*COMMAND, '--cfg-options', 'optimwrapper.optimizer.lr=1'],
            "--cfg-options optimwrapper.optimizer.lr: the config has no field 'optimwrapper'",
        ),
        (
            [*COMMAND, '--cfg-options', 'train_cfg.max_epochs=None'],
            'scratch vit_to_resnet seed0: train_cfg.max_epochs=None: must be a number',
        ),
        (['--table-only'], '--work-dir work_dirs/benchmark: there is no finished run in it'),
    ],
)
def test_mistake_is_one_line(project, refused, arguments, message):
    assert refused(*arguments).startswith(f'error: {message}')


def test_refuses_to_continue_what_it_did_not_start(project, refused):
    log = TEACHER / '20260101_000000/vis_data/scalars.json'
    log.parent.mkdir(parents=True)
    log.write_text('{"loss": 1.0, "epoch": 1, "step": 4}\n')
    assert refused(*COMMAND) == (
        'error: work_dirs/small_vit: holds a run that this command did not start; finish it with '
        'tools/train.py, set another model.teacher_checkpoint with --cfg-options, or remove that '
        'directory'
    )


def test_refuses_to_work_beside_another(project, refused):
    WORK_DIR.mkdir(parents=True)
    with (WORK_DIR / '.lock').open('a') as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        assert refused('--pairs', 'vit_to_resnet', '--methods', 'scratch') == (
            f'error: --work-dir {WORK_DIR}: another benchmark is running in it'
        )


# Plans


def test_teacher_that_is_taught_comes_after_its_own(project, benchmark):
    model = helpers.mldr(teacher_checkpoint='work_dirs/tiny_vit/epoch_4.pth')
    put(project / 'configs/teachers/small_vit.py', **settings(model, max_epochs=1))
    put(project / 'configs/teachers/tiny_vit.py', **settings(helpers.vit(), max_epochs=4))
    put(
        project / 'configs/pairs/other.py',
        **Config.fromfile('configs/pairs/vit_to_resnet.py').to_dict(),
    )
    plan = make_plan(benchmark, '--pairs', 'vit_to_resnet', 'other', '--methods', 'scratch', 'dfra')
    tiny, small, *students = plan.runs()
    assert [tiny.work_dir.name, small.work_dir.name] == ['tiny_vit', 'small_vit']
    assert (tiny.needs, small.needs) == (None, tiny)
    needs = {(run.labels['pair'], run.labels['method']): run.needs for run in students}
    for pair in ('vit_to_resnet', 'other'):
        assert needs[pair, 'scratch'] is None
        assert needs[pair, 'dfra'] is small


def test_options_go_to_all_but_the_model_only_to_students(project, benchmark):
    options = ['train_dataloader.batch_size=5', 'model.student.backbone.depth=34']
    plan = make_plan(benchmark, *COMMAND, '--cfg-options', *options)
    assert {run.settings['train_dataloader']['batch_size'] for run in plan.runs()} == {5}
    (teacher,) = plan.teachers.values()
    assert teacher.settings['model'] == helpers.vit()
    alone, distilled = plan.students[0].settings, plan.students[-1].settings
    assert alone['model'] == distilled['model']['student']
    assert alone['model']['backbone']['depth'] == 34
    assert alone['default_hooks'] == distilled['default_hooks']


# Other files


@pytest.mark.parametrize('line', ['{', '{"step": "1"}', '[' * 100_000])
def test_a_log_that_is_none(project, tool, line):
    log = PAIR / 'scratch/seed0/20200101_000000/vis_data/scalars.json'
    log.parent.mkdir(parents=True)
    log.write_text(f'{line}\n')
    (WORK_DIR / '.lock').touch()
    code, said = tool('benchmark', *COMMAND)
    assert code == 2
    assert said.startswith(f'error: {log}: must be the log of a run (')
    assert said.count('\n') == 1


@pytest.mark.parametrize('text', ['', '{"pair": 1}', '[' * 100_000])
def test_a_result_that_is_none(tool, tmp_path, text):
    file = tmp_path / 'a/kd/seed0/benchmark/result.json'
    file.parent.mkdir(parents=True)
    file.write_text(text)
    code, said = tool('benchmark', '--table-only', '--work-dir', tmp_path)
    assert code == 2
    assert said.startswith(f'error: {file}: is not the result of a run (')
    assert said.count('\n') == 1

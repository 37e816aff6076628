"""Every command and every Python block of README and docs works.

Each command is executed here or by another test, or ``PLACES`` states why not. All commands are
also checked without running them: files, flags and config fields must exist.
"""

from __future__ import annotations

import ast
import contextlib
import io
import itertools
import json
import re
import runpy
import shlex
import shutil
import sys
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import NamedTuple

import pytest
from helpers import mldr
from mmengine.config import Config

from mldr_kd_mm.cli import make_parser
from mldr_kd_mm.evaluation.measures import mean_and_std
from mldr_kd_mm.models import losses
from mldr_kd_mm.models.builder import build_classifier
from mldr_kd_mm.registry import HOOKS, MODELS

ROOT = Path(__file__).parents[1]
PAGES = [ROOT / 'README.md', *sorted((ROOT / 'docs').rglob('*.md'))]
TEXTS = [*PAGES, ROOT / 'CONTRIBUTING.md', *sorted((ROOT / 'examples').rglob('*.md'))]
# Pages whose Python blocks another test runs, except those that are configs.
PYTHON_ELSEWHERE = {
    'docs/deploy.md': 'apis/test_predict.py::test_python_of_the_page',
    'docs/own_images.md': 'test_tutorial.py::test_from_two_names_to_a_student',
    'README.md': 'test_tutorial.py::test_from_two_names_to_a_student',
    'docs/index.md': 'test_tutorial.py::test_from_two_names_to_a_student',
}

# Where commands are executed, by the first pattern that matches: here, by the named test, or not at
# all for the given reason.
HERE, NOT = 'here', 'not executed: '
PLACES = [
    # Getting started, by test_getting_started.
    (r'python tools/(train|test)\.py configs/quickstart/', HERE),
    (r'python tools/model_converters/export_student\.py work_dirs/my_first/', HERE),
    (r'python benchmarks/selective_scan\.py', HERE),
    (r'python docs/mldr_kd/draw\.py', 'test_site.py::test_pictures_of_the_method_are_drawn'),
    (r'python docs/take_screenshots\.py', 'test_site.py::test_screenshots'),
    (r'MLDR_KD_REPO_URL=.* mkdocs build', 'test_site.py::test_address_of_the_repository'),
    (
        r'(bash tools/quickstart\.sh|python tools/quickstart\.py)',
        'tools/test_quickstart.py::test_table_is_what_the_runs_logged',
    ),
    # The main job.
    (
        r'bash tools/dist_train\.sh configs/mldr/deit_to_mobilenet_c100\.py \d',
        'tools/test_main_job.py::test_two_processes_without_a_gpu',
    ),
    (r'bash tools/dist_train\.sh configs/', 'test_every_config.py::test_trains_a_step'),
    (r'bash tools/dist_test\.sh', 'tools/test_dist.py::test_two_processes_test'),
    (r'NNODES=', 'tools/test_dist.py::test_torchrun_arguments'),
    (r'MAX_RESTARTS=', 'faults/test_stop_signal.py::test_torchrun_starts_the_run_again'),
    (r'[A-Z_]+=.* tools/slurm_train\.sh', 'tools/test_dist.py::test_slurm'),
    (r'torchrun ', NOT + 'tools/dist_train.sh is the same, which is executed'),
    (r'CUDA_VISIBLE_DEVICES=', NOT + 'needs two GPUs'),
    (r'python tools/train\.py CONFIG --resume', 'tools/test_train.py::test_train_resume_and_test'),
    (r'python tools/test\.py', 'tools/test_distillation.py::test_train_resume_and_test'),
    (
        r'python tools/model_converters/export_student\.py',
        'tools/model_converters/test_export_student.py::test_runs_as_a_command',
    ),
    (
        r'python tools/train\.py configs/pairs/\S+ .*views=',
        'engine/hooks/test_teacher_cache.py::test_a_second_run_reads',
    ),
    (r'(python )?tools/train\.py .*--method', 'test_every_config.py::test_method_trains_a_step'),
    (
        r'python tools/analysis_tools/check_teacher_cache\.py',
        'tools/analysis_tools/test_check_teacher_cache.py::test_what_was_recorded_is_right',
    ),
    (r'python tools/train\.py configs/\S+_32px\.py', NOT + 'an hour, and needs CIFAR-100'),
    (r'python tools/train\.py configs/teachers/NAME\.py', NOT + 'an hour, and needs CIFAR-100'),
    (r'(python )?tools/benchmark\.py', 'tools/test_benchmark.py::test_csv_is_what_the_runs_logged'),
    (r'python docs/benchmarks/write_tables\.py', 'test_docs.py::test_tables_of_the_benchmarks'),
    (r'python docs/benchmarks/draw_accuracies\.py', 'test_docs.py::test_pictures_of_accuracies'),
    (r'python docs/benchmarks/teacher_confidence\.py', NOT + 'needs the teachers, of an hour'),
    (r'python docs/stability/relations\.py', NOT + 'trains a whole run'),
    (r'python docs/stability/folders\.py', NOT + 'needs CIFAR-100'),
    (
        r'python docs/stability/write_tables\.py',
        'test_docs.py::test_tables_of_the_page_on_stability',
    ),
    (r'python benchmarks/faults\.py', 'faults/test_campaign.py::test_a_log_is_continued'),
    (r'python benchmarks/data\.py', 'test_benchmarks.py::test_data'),
    (r'python benchmarks/dfra\.py', 'test_benchmarks.py::test_dfra'),
    (r'python benchmarks/step\.py', 'test_benchmarks.py::test_step'),
    (r'python benchmarks/launches\.py', 'test_benchmarks.py::test_launches'),
    (r'python benchmarks/gpu\.py', 'test_benchmarks.py::test_gpu_on_a_cpu'),
    (r'python benchmarks/triton_kernels\.py', 'test_benchmarks.py::test_triton_kernels'),
    (r'python benchmarks/scale\.py', 'test_benchmarks.py::test_scale'),
    (r'python benchmarks/run_all\.py', 'test_benchmarks.py::test_run_all'),
    (
        r'python benchmarks/stability\.py',
        'test_benchmarks.py::test_mldr_is_stable_with_few_classes',
    ),
    (r'python benchmarks/loss_scale\.py', 'test_benchmarks.py::test_loss_scale'),
    (r'python tools/analysis_tools/report\.py', 'visualization/test_report.py::test_command'),
    (r'mldr-kd distill .*--unlabeled more_birds', 'test_unlabeled_page.py::test_commands'),
    (r'mldr-kd \w+ .*digits', 'test_tutorial.py::test_from_two_names_to_a_student'),
    (r'(mldr-kd --version|python -m mldr_kd_mm)', 'test_cli.py::test_answers_at_once'),
    (
        r'(mldr-kd tune|python tools/tune\.py)',
        'apis/test_search.py::test_two_processes_share_a_study',
    ),
    (r'python tools/train\.py best/METHOD\.py', NOT + 'any config is trained in the same way'),
    (r'mldr-kd info', 'test_cli.py::test_info_of_models'),
    (r'python benchmarks/embed\.py', NOT + 'needs CIFAR-100 and a teacher, of an hour'),
    (r'mldr-kd probe', 'apis/test_probe.py::test_measures_a_run'),
    (r'mldr-kd predict', 'apis/test_predict.py::test_a_table'),
    (r'python benchmarks/quantization_aware\.py', NOT + 'ten minutes'),
    (r'mldr-kd export .*--int8', 'apis/test_quantize.py::test_files_and_measurements'),
    (r'mldr-kd export .*--backbone', 'apis/test_quantize.py::test_timm_loads_all_of_it'),
    (r'mldr-kd export', 'test_cli.py::test_distill_info_export_report'),
    (r'mldr-kd distill', 'test_cli.py::test_distill_info_export_report'),
    # Packages and tests.
    (
        r'(pip install PATH|pip install -e \. +# this|python train\.py configs/mldr_resnet\.py)',
        'test_packaging.py::test_project_outside_the_repository',
    ),
    (r'(mim train|python FOLDER/)', 'test_packaging.py::test_project_outside_the_repository'),
    (r'python -m pip wheel', 'test_packaging.py::test_wheel_has_all_files'),
    (r'python -c .*sdist', 'test_packaging.py::test_sdist_has_the_sources'),
    (r'\S+/(python -m (pytest|ruff)|lint-imports)', NOT + 'tools/run_tests.sh runs it'),
    (r'python tests/planted_faults\.py', NOT + 'half an hour'),
    (r'(pre-commit install|git tag)', NOT + 'changes the clone'),
    (r'bash tools/setup_env\.sh', NOT + 'needs a network; the tests run in what it made'),
    # Commands that precede the tests.
    (r'docker ', NOT + 'hosted CI builds the images and runs them'),
    (r'git clone', NOT + 'needs a network'),
    (r'cd ', NOT + 'belongs to the command before it'),
    (r'pip install', NOT + 'needs a network; tools/setup_env.sh installs the same'),
    (r'(PYTHON=.* )?bash tools/run_tests\.sh', NOT + 'runs this test'),
    (r'pip uninstall', NOT + 'changes this environment'),
]

PROGRAMS = 'python|bash|pip|git|cd|docker|torchrun|mim|mldr-kd|pre-commit|mkdocs|lint-imports'
COMMAND = re.compile(
    r"(?:[A-Z_]+=(?:'[^']*'|\S+) +)*"  # variables
    rf'(?:(?:\S+/)?(?:{PROGRAMS})(?![\w./-])|tools/)'
)
# Shell syntax that may stand between commands.
SHELL = re.compile(r'(for|done|do|export)\b|[A-Z]+\+?=|#')


class Command(NamedTuple):
    """A command of a page."""

    page: str
    line: int
    text: str

    def __str__(self) -> str:
        return f'{self.page}:{self.line}: {self.text}'

    @property
    def words(self) -> list[str]:
        return shlex.split(self.text, comments=True)


def blocks(path: Path) -> Iterator[tuple[int, str, str]]:
    """Yield line number, language ('' if indented) and content of each code block of a page."""
    lines = path.read_text().splitlines()
    number = 0
    while number < len(lines):
        start, line = number, lines[number]
        number += 1
        if line.lstrip().startswith('```'):
            indent, _, language = line.partition('```')
            while lines[number] != f'{indent}```':
                number += 1
            content = '\n'.join(line.removeprefix(indent) for line in lines[start + 1 : number])
            yield start + 2, language or 'text', content
            number += 1
        elif line.startswith('    ') and not lines[start - 1].strip():
            while number < len(lines) and re.match('    |$', lines[number]):
                number += 1
            yield start + 1, '', '\n'.join(line[4:] for line in lines[start:number])


def commands(path: Path) -> Iterator[Command]:
    """Yield the commands of a page, in code blocks and inline code."""
    page = str(path.relative_to(ROOT))
    for number, language, content in blocks(path):
        if language not in ('', 'bash', 'console', 'sh', 'shell'):
            continue
        lines = re.sub(r'\\\n\s*', '', content).splitlines()
        if any(line.startswith('$ ') for line in lines):
            # The other lines are output.
            lines = [line[2:] if line.startswith('$ ') else '' for line in lines]
        for offset, line in enumerate(lines):
            for part in map(str.strip, line.split(' && ')):
                if COMMAND.match(part):
                    yield Command(page, number + offset, part)
                elif language and not SHELL.match(part) and part:
                    pytest.fail(f'{page}:{number + offset}: not a known command: {part}')
    for number, line in enumerate(path.read_text().splitlines(), 1):
        for code in re.findall(r'(?<!`)`([^`]+)`(?!`)', line if line[:4].strip() else ''):
            if COMMAND.match(code) and ' ' in code:
                yield Command(page, number, code)


COMMANDS = [command for path in TEXTS for command in commands(path)]


def place_of(command: Command) -> str:
    """Return where a command is executed, or why it is not."""
    fitting = (place for pattern, place in PLACES if re.match(pattern, command.text))
    return next(fitting, '')


def test_commands_have_a_place():
    """Each command is executed here or by the named test, or there is a reason."""
    lost = [str(command) for command in COMMANDS if not place_of(command)]
    assert not lost, 'state in PLACES where these are executed, or why not: ' + '\n'.join(lost)
    for place in {place_of(command) for command in COMMANDS}:
        if '::' in place:
            check_test(place)


def check_test(place: str) -> None:
    """Assert that a named test exists."""
    file, name = place.split('::')
    paths = list((ROOT / 'tests').rglob(file))
    assert any(re.search(rf'^ *def {name}\(', p.read_text(), re.MULTILINE) for p in paths), place


def test_places_are_all_used():
    firsts = {
        next(pattern for pattern, _ in PLACES if re.match(pattern, command.text))
        for command in COMMANDS
        if place_of(command)
    }
    assert [pattern for pattern, _ in PLACES if pattern not in firsts] == []


def test_commands_exist():
    """Their files exist, their scripts know the flags and variables, their configs the fields."""
    failures = []
    for command in COMMANDS:
        try:
            check_command(command)
        except (Exception, SystemExit, pytest.fail.Exception) as error:
            failures.append(f'{command}: {error}')
    assert not failures, '\n'.join(failures)


def check_command(command: Command) -> None:
    """Check one command."""
    words = list(itertools.takewhile('>'.__ne__, command.words))
    variables = []
    while re.match('[A-Z_]+=', words[0]):
        variables.append(words.pop(0).partition('=')[0])
    program, *arguments = words
    if program == 'pip':
        return check_pip(arguments)
    if program == 'mldr-kd':
        return check_mldr_kd(arguments)
    if program in ('git', 'cd', 'docker', 'mim', 'pre-commit', '.venv/bin/lint-imports'):
        return None
    if arguments[0] == '-c':
        return None
    if arguments[0] == '-m':
        return check_tests(arguments)
    if program == 'torchrun':
        script = next(word for word in arguments if word.endswith('.py'))
        arguments = arguments[arguments.index(script) + 1 :]
    else:
        script = program if program.startswith('tools/') else arguments.pop(0)
    home = (ROOT / command.page).parent
    path = next(iter(home.glob(script)), ROOT / script.replace('FOLDER/.mim/', ''))
    assert path.is_file(), f'{script} does not exist'
    if program == script and path.suffix == '.sh':
        assert path.stat().st_mode & 0o100, f'{script} cannot be executed'
    launchers = ''.join(file.read_text() for file in (path, ROOT / 'tools/_launch.py'))
    for name in variables:
        assert name == 'CUDA_VISIBLE_DEVICES' or name in launchers, f'{script} reads no {name}'

    for word in arguments:
        if is_config(word):
            assert (home / word).is_file() or (ROOT / word).is_file(), f'{word} does not exist'
    flags = [word for word in arguments if word.startswith('--')]
    if flags:
        python = python_of(script)
        text = help_of(python) if (ROOT / python).is_file() else path.read_text()
        known = set(re.findall(r'--[\w-]+', text))
        assert [flag for flag in flags if flag.partition('=')[0] not in known] == []
    check_options(arguments)


def is_config(word: str) -> bool:
    """Return whether a word is the path of a config without placeholders."""
    return bool(re.fullmatch(r'configs/[a-z\d_/.-]+\.py', word))


def check_mldr_kd(arguments: list[str]) -> None:
    """Parse the arguments; a command without any is only mentioned."""
    if len(arguments) == 1 and arguments != ['info']:
        assert re.search(rf'\n +{arguments[0]} ', make_parser().format_help())
    else:
        make_parser().parse_args(arguments)


def check_tests(arguments: list[str]) -> None:
    """Assert that the tests exist."""
    for word in arguments:
        assert not word.startswith('tests/') or (ROOT / word).exists(), f'{word} does not exist'


def check_pip(arguments: list[str]) -> None:
    """Assert that the extras exist and have a requirements file."""
    for word in arguments:
        for extra in re.findall(r'\[(.*)\]', word):
            assert (ROOT / f'requirements/{extra}.txt').is_file()
            assert f"'{extra}'" in (ROOT / 'setup.py').read_text()


def python_of(script: str) -> str:
    """Return the Python script that gets the arguments of a shell script."""
    names = {'dist_train.sh': 'train.py', 'dist_test.sh': 'test.py', 'slurm_train.sh': 'train.py'}
    path = Path(script)
    return str(path.with_name(names.get(path.name, path.name)).with_suffix('.py'))


@cache
def help_of(script: str) -> str:
    """Return the ``--help`` text of a script."""
    printed, path = io.StringIO(), list(sys.path)
    sys.path.insert(0, str((ROOT / script).parent))
    argv, sys.argv = sys.argv, [script, '--help']
    try:
        with contextlib.redirect_stdout(printed), pytest.raises(SystemExit):
            runpy.run_path(str(ROOT / script), run_name='__main__')
    finally:
        sys.argv, sys.path[:] = argv, path
    return printed.getvalue()


def check_options(arguments: list[str]) -> None:
    """Assert that --cfg-options sets existing fields; the last name may be new."""
    configs = [word for word in arguments if is_config(word) and '/methods/' not in word]
    options = [word for word in arguments if re.match(r'[a-z_]+(\.\w+)*=', word)]
    for config, option in itertools.product(configs, options):
        node = Config.fromfile(ROOT / config)
        *parents, _ = option.partition('=')[0].split('.')
        for name in parents:
            if isinstance(node, list):
                node = node[int(name)]
                continue
            assert name in node or name == 'subset', f'{config}: {option}: there is no {name}'
            node = node.get(name, {})


@pytest.fixture
def here(tmp_path, monkeypatch):
    """Change to an empty directory with configs/ and tools/, like a clone."""
    shutil.copytree(ROOT / 'configs', tmp_path / 'configs')
    for name in ('tools', 'benchmarks'):
        (tmp_path / name).symlink_to(ROOT / name)
    monkeypatch.chdir(tmp_path)
    # Tools set it for the whole process; monkeypatch restores it.
    monkeypatch.setenv('LOCAL_RANK', '0')
    return tmp_path


def execute(words: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    """Run ``python SCRIPT ARGUMENTS`` in this process."""
    assert words[0] == 'python'
    monkeypatch.setattr(sys, 'argv', words[1:])
    monkeypatch.syspath_prepend(Path(words[1]).parent.resolve())
    runpy.run_path(words[1], run_name='__main__')


# One epoch instead of 40 or 80, of few images, and so other names of checkpoints.
SHORT = [f'train_cfg.{name}=1' for name in ('max_epochs', 'val_interval')]
SHORT += ['train_dataloader.dataset.subset.per_class=2']
ANOTHER_TEACHER = 'model.teacher_checkpoint=work_dirs/quickstart/teacher/epoch_1.pth'


def test_getting_started(here, monkeypatch, capfd):
    """Run the commands of the page in order, with one epoch per run."""
    pytest.importorskip('sklearn', reason='needs scikit-learn')
    page = [command for command in COMMANDS if command.page == 'docs/getting_started.md']
    mine = [command for command in page if place_of(command) == HERE]
    assert len(mine) == 6
    for command in mine:
        words = [word.replace('epoch_80', 'epoch_1') for word in command.words]
        if 'tools/train.py' in words:
            short = SHORT + [ANOTHER_TEACHER] * ('configs/quickstart/mldr.py' in words)
            given = words[words.index('--cfg-options') + 1 :] if '--cfg-options' in words else []
            words = [*words[: len(words) - len(given) - bool(given)], '--cfg-options']
            words += [*given, *short]
        if 'tools/test.py' in words:
            words += ['--cfg-options', ANOTHER_TEACHER]
        execute(words, monkeypatch)
    assert (here / 'student.pth').is_file()
    assert (here / 'work_dirs/another/epoch_1.pth').is_file()
    shown = capfd.readouterr().out
    assert "teacher's accuracy" in shown and 'weights matched' not in shown
    logs = ''.join(log.read_text() for log in (here / 'work_dirs/my_first').glob('*/*.log'))
    assert 'weights matched' in logs and 'Teacher on the validation set' in logs


def test_selective_scan(here, monkeypatch, capsys):
    (command,) = (c for c in COMMANDS if 'benchmarks/selective_scan.py' in c.words)
    small = ['--batch', '1', '--length', '9', '--width', '8', '--repeats', '1']
    execute([*command.words, *small], monkeypatch)
    assert 'ms' in capsys.readouterr().out


def python_blocks(path: Path) -> list[tuple[int, str]]:
    return [(number, text) for number, language, text in blocks(path) if language == 'python']


WITH_PYTHON = [path for path in PAGES if python_blocks(path)]


@pytest.mark.parametrize('path', WITH_PYTHON, ids=lambda path: str(path.relative_to(ROOT)))
def test_python(path, here):
    """Each block runs, in the order of the page, and its configs can be built."""
    elsewhere = PYTHON_ELSEWHERE.get(str(path.relative_to(ROOT)))
    if elsewhere:
        check_test(elsewhere)
    registered = dict(MODELS.module_dict), dict(MODELS.parent.module_dict)
    try:
        for number, text in python_blocks(path):
            compile(text, f'{path.name}:{number}', 'exec')
            if not elsewhere or is_config_block(text):
                build(run_block(text, here))
    finally:
        for registry, names in zip((MODELS, MODELS.parent), registered, strict=True):
            registry._module_dict = names


def is_config_block(text: str) -> bool:
    """Return whether a block only sets fields, to values and dicts."""
    calls = [node.func for node in ast.walk(ast.parse(text)) if isinstance(node, ast.Call)]
    sets_fields = all(isinstance(statement, ast.Assign) for statement in ast.parse(text).body)
    return sets_fields and {ast.unparse(call) for call in calls} <= {'dict'}


def run_block(text: str, here: Path) -> dict:
    """Return the names that a block defines; a config is read as one of configs/quickstart/."""
    if '_base_' not in text:
        names: dict = {}
        exec(text, names)
        return names
    config = here / 'configs/quickstart/mine.py'
    config.write_text(text)
    return Config.fromfile(config)._cfg_dict.to_dict() | {'text': text}


def build(names: dict) -> None:
    """Build the parts that a block configures completely; its files do not exist."""
    for side in ('teacher', 'student'):
        if names.get(side):
            build_classifier(names[side])
    if ... not in names.get('student_recorder', {}).get('taps', {}).values():
        if names.get('student_recorder'):
            MODELS.build(names['student_recorder'])
    for hook in names.get('custom_hooks', []):
        HOOKS.build(hook)
    if 'text' not in names and names.get('method'):
        MODELS.build(mldr(**({'neck': None, 'losses': []} | names['method'])))
    # test_every_config.py builds the shipped pairs.
    if "type='Distiller'" in names.get('text', ''):
        MODELS.build(dict(names['model'], teacher_checkpoint=None))


def test_pictures_of_accuracies(tmp_path):
    """The pictures show the current results, and their text is legible on any ground."""
    draw = runpy.run_path(str(ROOT / 'docs/benchmarks/draw_accuracies.py'))
    words = {
        'tuned_comparison/methods.svg': {'RSD', 'MLDR-KD with RSD', 'MLP-Mixer'},
        'benchmarks/methods.svg': {'rsd', 'mldr', 'A ViT teaches a ResNet18'},
    }
    for name in words:
        (tmp_path / name).parent.mkdir()
    draw['draw_all'](tmp_path)
    for name, texts in words.items():
        drawn, shipped = ((folder / name).read_text() for folder in (tmp_path, ROOT / 'docs'))
        assert len(points(drawn)) > 100
        assert points(drawn) == points(shipped), 'run: python docs/benchmarks/draw_accuracies.py'
        assert texts <= {*re.findall('>([^<>]+)</text>', shipped)}
        assert '#1b1f23' not in shipped and 'currentColor' not in shipped
        assert 'fill: #ffffff' not in shipped


def points(svg):
    """Return the places of the seeds in a picture, in whole pixels."""
    return [
        (round(float(x)), round(float(y)))
        for x, y in re.findall(r'<use xlink:href="#\w+" x="([\d.]+)" y="([\d.]+)"', svg)
    ]


def test_badges_state_the_requirements():
    badges = runpy.run_path(str(ROOT / 'docs/assets/draw_badges.py'))['badges']()
    for name, svg in badges.items():
        path = ROOT / f'docs/assets/badges/{name}.svg'
        assert path.read_text() == svg, 'run: python docs/assets/draw_badges.py'
    assert '≥ 2.6, &lt; 2.16' in badges['torch'] and '3.10' in badges['python']


def test_the_readme_is_short():
    assert len((ROOT / 'README.md').read_text().splitlines()) <= 110


def test_tables_of_the_benchmarks():
    tables = runpy.run_path(str(ROOT / 'docs/benchmarks/write_tables.py'))
    for path, text in tables['written_pages']().items():
        assert path.read_text() == text, f'{path}: run python docs/benchmarks/write_tables.py'


def test_tables_of_the_page_on_stability():
    tables = runpy.run_path(str(ROOT / 'docs/stability/write_tables.py'))
    page = (ROOT / 'docs/stability.md').read_text()
    assert tables['written_page']() == page, 'run python docs/stability/write_tables.py'


def test_experiment_without_labels():
    """The table of the page is what the runs measured."""
    text = (ROOT / 'docs/unlabeled/embed.jsonl').read_text()
    rows = [json.loads(line) for line in text.splitlines()]
    assert len(rows) == 3
    page = (ROOT / 'docs/unlabeled.md').read_text()
    for field, name in (
        ('before', 'student, random weights'),
        ('after', 'student after 25 epochs'),
        ('teacher', 'teacher'),
    ):
        values = [row[field] for row in rows]
        found = f'{values[0]:.2f}' if len({*values}) == 1 else mean_and_std(values)
        assert f'| {name} | {found} |' in page
    assert {(row['epochs'], row['images']) for row in rows} == {(25, 2000)}


def test_methods_are_documented():
    page = (ROOT / 'docs/methods.md').read_text()
    methods = [path.stem for path in (ROOT / 'configs/_base_/methods').glob('*.py')]
    assert [name for name in methods if f'`{name}`' not in page] == []
    assert [name for name in losses.__all__ if name not in page] == []


LINK = re.compile(r'\[[^\]]*\]\(([^)\s]+)\)')


def test_links_of_the_readme():
    """MkDocs checks the links of the docs."""
    links = [link for link in LINK.findall((ROOT / 'README.md').read_text()) if ':' not in link]
    assert links
    assert [link for link in links if not (ROOT / link.partition('#')[0]).exists()] == []

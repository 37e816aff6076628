"""Reports of real runs: their content, and their display in a real browser."""

import re
import shutil
from datetime import date
from html.parser import HTMLParser
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import pytest
import torch
from helpers import on_terminal, resnet, train
from mmengine.config import Config
from mmengine.runner import Runner

from mldr_kd_mm.cli import main
from mldr_kd_mm.evaluation.efficiency import Efficiency
from mldr_kd_mm.evaluation.logged_run import LoggedRun
from mldr_kd_mm.registry import MODELS
from mldr_kd_mm.utils.errors import ConfigError
from mldr_kd_mm.visualization import model_figures, report
from mldr_kd_mm.visualization.report import describe_model, make_report

TOOL = Path(__file__).parents[2] / 'tools/analysis_tools/report.py'
HOSTILE = '<img src=x onerror=alert(1)>&$x^{"'


class Page(HTMLParser):
    """The texts of a page, its table, and the names of its elements."""

    def __init__(self, path):
        super().__init__()
        self.tags, self.texts, self.cells, self.labels = [], [], [], []
        self.source = path.read_text()
        self.tables = 0
        self.feed(self.source)
        columns = self.cells[: len(report._COLUMNS)]
        rest = self.cells[len(columns) :]
        width = len(columns)
        self.rows = [
            dict(zip(columns, rest[start : start + width], strict=True))
            for start in range(0, len(rest), width)
        ]

    def handle_starttag(self, tag, attrs):
        self.tags.append(tag)
        self.tables += tag == 'table'
        self.labels += [value for name, value in attrs if name == 'aria-label']

    def handle_data(self, data):
        self.texts.append(data)
        # The first table is that of the runs.
        if self.tags[-1:] in (['td'], ['th']) and self.tables == 1 and data.strip():
            self.cells.append(data)


@pytest.fixture(scope='module')
def made(runs, tmp_path_factory):
    """Write a report on a distilled student and a student alone; return its path."""
    return make_report([runs / 'mldr', runs / 'alone'], tmp_path_factory.mktemp('out'))


@pytest.fixture
def unmeasured(monkeypatch):
    """Leave costs and t-SNE out: other tests look at them, and they take seconds."""
    monkeypatch.setattr(report, 'measure', lambda *_: Efficiency(1, None, 0.1))
    monkeypatch.setattr(model_figures, '_embed', lambda features: features[:, :2])


@pytest.fixture
def undrawn(unmeasured, monkeypatch):
    """Leave the figures out, too."""

    def save(figure, file, *, format, **kwargs):
        file.write('<svg ></svg>' if format == 'svg' else b'')

    monkeypatch.setattr('matplotlib.figure.Figure.savefig', save)


def test_table_is_what_was_logged_and_computed(made, runs, logged):
    taught, alone = Page(made).rows
    records = logged(runs / 'mldr')
    accuracies = [line['accuracy/top1'] for line in records if 'accuracy/top1' in line]
    (teacher,) = [record for record in records if 'teacher/accuracy/top1' in record]
    assert taught['Run'] == 'mldr' and alone['Run'] == 'alone'
    assert taught['Teacher'] == 'VisionTransformer' and alone['Teacher'] == 'none'
    assert taught['Student'] == alone['Student'] == 'ResNet_CIFAR 18'
    assert taught['Epochs'] == '2'
    assert taught['Last accuracy, %'] == f'{accuracies[-1]:.2f}'
    assert taught['Best accuracy, %'] == f'{max(accuracies):.2f}'
    assert taught["Teacher's accuracy, %"] == f'{teacher["teacher/accuracy/top1"]:.2f}'
    times = [record['time'] for record in records if record.get('epoch') and 'loss' in record]
    # The latest value of each epoch is used.
    speed = np.median([10 / time for time in (times[3], times[7])])
    assert taught['Images/s'] == f'{speed:,.0f}'
    assert alone['Agreement with the teacher, %'] == '–'
    assert re.fullmatch(r'\d+\.\d', alone['ECE of student / teacher, %'])


@torch.no_grad()
def test_agreement_is_that_of_the_models(made, runs):
    run = LoggedRun.read(runs / 'mldr', 'mldr')
    model = run.build_model(run.checkpoint())
    same = right = 0
    for data in Runner.build_dataloader(run.config.val_dataloader):
        batch = model.data_preprocessor(data, False)
        student = [int(s.pred_label) for s in model.student.predict(**batch)]
        teacher = [int(s.pred_label) for s in model.predict_teacher(**batch)]
        same += sum(a == b for a, b in zip(student, teacher, strict=True))
        right += sum(
            a == int(s.gt_label) for a, s in zip(student, batch['data_samples'], strict=True)
        )
    row = Page(made).rows[0]
    assert row['Agreement with the teacher, %'] == f'{100 * same / 30:.1f}'
    assert row['Last accuracy, %'] == f'{100 * right / 30:.2f}', 'the newest checkpoint'


def test_verdict_is_what_the_runs_logged(made, runs, logged):
    last = {
        name: [line['accuracy/top1'] for line in logged(runs / name) if 'accuracy/top1' in line][-1]
        for name in ('mldr', 'alone')
    }
    points = last['mldr'] - last['alone']
    page = Page(made)
    assert page.rows[0]['Gain over the student alone, points'] == f'{points:+.2f}'
    assert page.rows[1]['Gain over the student alone, points'] == '–'
    (verdict,) = [text for text in page.texts if text.startswith('mldr: ')]
    assert f'{last["mldr"]:.2f} %, {points:+.1f} points over the student alone' in verdict
    assert f'{date.today()}' in page.source and '30 images' in page.source


def test_images_are_those_that_differ(made, runs):
    """As many thumbnails as images that only one of both students classifies correctly."""
    right = {}
    for name in ('mldr', 'alone'):
        run = LoggedRun.read(runs / name, name)
        seen = report._observe(
            run.build_model(run.checkpoint()), run.validation_batches(2000), name
        )
        right[name] = seen.student.argmax(1) == seen.labels
    page = Page(made)
    for kind, chosen in (
        ('repaired', right['mldr'] & ~right['alone']),
        ('broken', right['alone'] & ~right['mldr']),
    ):
        if chosen.any():
            assert f'{chosen.sum()} of 30 images {kind} by mldr' in page.source
    shown = sum(
        min(12, int(c.sum()))
        for c in (right['mldr'] & ~right['alone'], right['alone'] & ~right['mldr'])
    )
    assert page.tags.count('img') == shown > 0
    assert page.source.count('src="data:image/jpeg;base64,') == shown


def test_efficiency_is_measured_here(made):
    source = made.read_text()
    table = source[source.index('<h2>Efficiency') :]
    table = table[: table.index('</table>')]
    assert f'torch {torch.__version__}' in table
    for runtime in ('PyTorch', 'ONNX Runtime')[: 2 if find_spec('onnxruntime') else 1]:
        assert f'{runtime}: 1 image, ms' in table and f'{runtime}: images/s' in table
    # The student of both runs is one row.
    assert re.findall('>(teacher|student) [^<]*, 32 x 32 px<', table) == ['teacher', 'student']
    parameters = sum(p.numel() for p in MODELS.build(resnet()).parameters())
    assert f'>{parameters / 1e6:.2f}<' in table


def test_the_page_is_small(made):
    assert made.stat().st_size < 2e6


def test_seeds_are_one_line(undrawn, copy_run, tmp_path):
    one, two = (copy_run('alone', name) for name in ('alone_seed0', 'alone_seed1'))
    (path,) = two.glob('*/vis_data/config.py')
    config = Config.fromfile(path)
    config.randomness.seed = 1
    config.dump(path)
    page = Page(make_report([one, two], tmp_path / 'out', samples=8))
    (row,) = page.rows
    assert row['Run'] == 'alone (2 seeds)'
    assert row['Last accuracy, %'].endswith(' ± 0.00')


def test_runs_of_different_images_are_not_compared(undrawn, runs, copy_run, tmp_path):
    other = copy_run('alone', 'other')
    (path,) = other.glob('*/vis_data/config.py')
    config = Config.fromfile(path)
    config.val_dataloader.dataset.subset.per_class = 2
    config.dump(path)
    page = Page(make_report([runs / 'mldr', other], tmp_path / 'out'))
    assert page.rows[0]['Gain over the student alone, points'] == '–'
    assert any('validate on different images' in text for text in page.texts)
    assert {'accuracy_0.png', 'accuracy_1.png'} < {
        path.name for path in (tmp_path / 'out/figures').glob('*.png')
    }


def test_every_figure_is_there_and_a_file(made):
    page = Page(made)
    files = {path.name for path in (made.parent / 'figures').glob('*.png')}
    assert page.tags.count('svg') == len(files) == page.tags.count('figure')
    expected = {
        'accuracy.png',
        'learning_rate.png',
        'throughput.png',
        'outcomes.png',
        'run0_losses.png',
        'run1_losses.png',
        'run0_classes.png',
        'run0_map_teacher.png',
        'run0_map_student.png',
        'run0_fusion.png',
        'run0_fusion_by_class.png',
        'run0_relation_teacher.png',
        'run0_relation_student.png',
        'run0_relation_student_minus_teacher.png',
        'run0_relation_fused_head_minus_teacher.png',
        'run0_calibration.png',
        'run1_calibration.png',
        'run0_cka.png',
    }
    assert expected <= files
    losses = page.source[page.source.index('aria-label="Loss terms · mldr') :]
    losses = losses[: losses.index('</svg>')]
    heads = ('logits', 'stage1', 'stage2', 'stage3', 'stage4', 'fused')
    for term in ('loss', 'loss_student', *(f'loss_dfra_{head}' for head in heads)):
        assert f'>{term}<' in losses
    assert any(name.startswith('run0_confusions_') for name in files)
    assert 'alone' in ''.join(label for label in page.labels if 'onfusions' in label)
    assert 'no figures' not in page.source


def test_without_the_student_alone_the_teacher_is_compared(undrawn, runs, copy_run, tmp_path):
    """A run of another student is not used as the baseline."""
    other = copy_run('alone', 'other')
    (config,) = other.glob('*/vis_data/config.py')
    changed = Config.fromfile(config)
    changed.model.backbone.drop_path_rate = 0.1
    changed.dump(config)
    page = Page(make_report([runs / 'mldr', other], tmp_path / 'out'))
    assert 'than the teacher' in ''.join(page.labels)
    assert 'against teacher' in ''.join(page.labels)


@pytest.mark.parametrize('gone', ['teacher', 'checkpoint', 'data', 'model'])
def test_what_is_gone_is_a_note(undrawn, copy_run, tmp_path, gone):
    run = copy_run('mldr', 'run')
    (path,) = run.glob('*/vis_data/config.py')
    config = Config.fromfile(path)
    if gone == 'teacher':
        config.model.teacher_checkpoint = 'lost.pth'
        message = "teacher_checkpoint='lost.pth': there is no such file"
    elif gone == 'checkpoint':
        for file in run.glob('*.pth'):
            file.write_bytes(file.read_bytes()[:1000])
        message = 'cannot be read as weights'
    elif gone == 'data':
        config.val_dataloader.dataset = dict(type='ImageNet', data_root='lost', split='val')
        message = 'lost/val'
    else:
        config.model.student.head.num_classes = config.model.teacher.head.num_classes = 9
        config.model.teacher_checkpoint = None
        message = 'checkpoint: does not fit the config: its head has 10 classes, the model 9; '
    config.dump(path)
    page = Page(make_report([run], tmp_path / 'out'))
    (note,) = [text for text in page.texts if 'no figures of its models' in text]
    assert message in note and '\n' not in note
    files = {file.name for file in (tmp_path / 'out/figures').glob('*.png')}
    assert {'accuracy.png', 'run0_fusion.png', 'throughput.png'} <= files
    assert not [name for name in files if 'relation' in name or 'calibration' in name]


def test_hostile_names_are_texts(copy_run, tmp_path):
    run = copy_run('mldr', HOSTILE)
    (path,) = run.glob('*/vis_data/config.py')
    config = Config.fromfile(path)
    config.model.teacher_checkpoint = HOSTILE
    config.dump(path)
    log = next(run.glob('*/vis_data/scalars.json'))
    log.write_text(log.read_text().replace('loss_dfra_stage1', 'loss_<script>alert(1)</script>'))
    page = Page(make_report([run], tmp_path / 'out'))
    assert not {'img', 'script'} & set(page.tags)
    assert page.rows[0]['Run'] == HOSTILE
    assert 'loss_&lt;script' in page.source and '<script' not in page.source


def test_what_the_hook_logged_and_a_loop_over_iterations(unmeasured, runs, tmp_path):
    config = LoggedRun.read(runs / 'mldr', 'mldr').config
    train(
        config.model.to_dict(),
        tmp_path / 'run',
        train_cfg=dict(by_epoch=False, max_iters=4, val_interval=2),
        log_processor=dict(by_epoch=False),
        default_hooks=dict(
            logger=dict(type='LoggerHook', interval=1), figures=dict(type='FigureHook', interval=1)
        ),
    )
    page = Page(make_report([tmp_path / 'run'], tmp_path / 'out'))
    assert 'Agreement in training over the iterations' in page.labels
    assert 'ECE of the student in training over the iterations' in page.labels
    fusion = page.source[page.source.index('aria-label="Fusion weights') :]
    bands = re.findall('fill-opacity: 0.15', fusion[: fusion.index('</svg>')])
    assert len(bands) == 4


def test_names_tell_runs_apart(undrawn, copy_run, runs, tmp_path):
    one, two = copy_run('alone', 'a/run'), copy_run('alone', 'b/run')
    page = Page(make_report([one, two], tmp_path / 'out', samples=8))
    assert [row['Run'] for row in page.rows] == ['a/run', 'b/run']
    with pytest.raises(ConfigError, match='work_dirs: a directory is given twice'):
        make_report([one, one], tmp_path / 'out')


def test_describe_model():
    assert describe_model(dict(type='TimmClassifier', model_name='deit_tiny')) == 'deit_tiny'
    vit = dict(type='ImageClassifier', backbone=dict(type='VisionTransformer', arch='deit-small'))
    assert describe_model(vit) == 'VisionTransformer deit-small'
    module = dict(type='ModuleClassifier', module='torchvision.models:resnet18')
    assert describe_model(module) == 'resnet18'
    assert describe_model(module | dict(kwargs=dict(name='some/vit'))) == 'some/vit'


def run_report(capsys, *args):
    """Run the command in this process; return its exit code, stdout and stderr."""
    capsys.readouterr()
    try:
        main(['report', *map(str, args)])
    except SystemExit as end:
        return end.code, *capsys.readouterr()
    return 0, *capsys.readouterr()


def test_command(undrawn, copy_run, capsys):
    run = copy_run('mldr', 'run')
    code, out, _ = run_report(capsys, run, '--samples', 10, '--checkpoint', 'epoch_1.pth')
    assert code == 0 and out.splitlines()[-1] == f'{run}/report/report.html'
    assert 'up to 10 samples' in (run / 'report/report.html').read_text()


def test_a_terminal_gets_a_bar(copy_run):
    run = copy_run('mldr', '[bold]run')
    code, output = on_terminal(TOOL, run, '--samples', 10)
    assert code == 0, output
    assert re.search(r'\[bold\]run .*━.*\d/\d', output)
    assert output.splitlines()[-1].endswith(f'{run}/report/report.html')


@pytest.mark.parametrize(
    ('args', 'message'),
    [
        (['lost'], 'lost: must be the work directory of a run'),
        (['lost', '--samples', '0'], '--samples 0: must be a positive integer'),
    ],
)
def test_mistake_is_one_line(capsys, tmp_path, monkeypatch, args, message):
    monkeypatch.chdir(tmp_path)
    code, _, err = run_report(capsys, *args)
    assert code == 2
    assert len(err.splitlines()) == 1 and message in err
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(('scheme', 'width'), [('light', 1280), ('dark', 360)])
def test_in_a_browser(made, browser, scheme, width):
    context = browser.new_context(
        viewport=dict(width=width, height=800), color_scheme=scheme, offline=True
    )
    page = context.new_page()
    said, requests = [], []
    page.on('console', lambda message: said.append(message.text))
    page.on('pageerror', lambda error: said.append(str(error)))
    page.on('request', lambda request: requests.append(request.url))
    # The page is alone in its folder, since it must need no other file.
    alone = made.parent / 'alone'
    alone.mkdir(exist_ok=True)
    shutil.copy(made, alone / 'page.html')
    page.goto((alone / 'page.html').as_uri())

    assert said == []
    assert [url for url in requests if not url.startswith('data:')] == [
        (alone / 'page.html').as_uri()
    ]
    assert page.evaluate('document.documentElement.scrollWidth') <= width
    figures = page.evaluate(
        """() => [...document.querySelectorAll('figure svg')].map(svg => {
          const {left, right, width, height} = svg.getBoundingClientRect();
          return [left, right, width, height, svg.getAttribute('aria-label')];
        })"""
    )
    assert len(figures) > 15
    for left, right, figure_width, height, label in figures:
        assert 0 <= left and right <= width, label
        assert figure_width > 200 and height > 80 and label
    dark = page.evaluate('getComputedStyle(document.body).backgroundColor')
    assert (dark == 'rgb(21, 24, 28)') == (scheme == 'dark')
    context.close()

"""Summary and progress bars on a pseudo-terminal and in a file."""

import re
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from helpers import mldr, on_terminal, resnet, run_python, runner_config, train, vit
from mmengine.config import Config
from mmengine.hooks import Hook
from mmengine.runner import Runner

from mldr_kd_mm.engine.hooks import ProgressHook
from mldr_kd_mm.engine.hooks.progress import _cached, _duration
from mldr_kd_mm.utils.progress import close_bars, is_open, open_bars

WORKER = Path(__file__).with_name('progress_worker.py')
BAR = '━'
ESCAPES = re.compile(r'\x1b\[[0-9;?]*[A-Za-z]')
TIME = r'\d\d/\d\d \d\d:\d\d:\d\d'
SHOWS_CURSOR, HIDES_CURSOR = '\x1b[?25h', '\x1b[?25l'


def log_of(work_dir):
    (path,) = work_dir.glob('*/*.log')
    return path.read_text()


def weights(work_dir):
    return torch.load(work_dir / 'epoch_7.pth', weights_only=False)['state_dict']


@pytest.fixture(scope='module')
def terminal(tmp_path_factory):
    """Train on a terminal; return the work directory and the terminal's output."""
    work_dir = tmp_path_factory.mktemp('terminal') / 'run'
    code, output = on_terminal(WORKER, work_dir)
    assert code == 0, output
    return work_dir, output


@pytest.fixture(scope='module')
def file(tmp_path_factory):
    """Train with the output in a file; return the work directory and the output."""
    work_dir = tmp_path_factory.mktemp('file') / 'run'
    return work_dir, run_python(WORKER, work_dir)


def test_a_terminal_gets_bars(terminal):
    output = ESCAPES.sub('', terminal[1])
    assert BAR in output
    assert re.search(r'train .*28/28 +epoch 7/7 +loss \d+\.\d+ +accuracy \d+\.\d %', output)
    assert re.search(r'val .*\d/3', output)
    assert re.search(r'teacher .*\d/3', output[: output.index('Training setup')])
    assert terminal[1].rindex(SHOWS_CURSOR) > terminal[1].rindex(HIDES_CURSOR)
    assert 'the end' in output[output.rindex(BAR) :]


def test_log_lines_are_not_torn(terminal):
    work_dir, output = terminal
    # When the cursor returns to the start of a line, the line is overwritten.
    shown = [line.rpartition('\r')[2].rstrip() for line in ESCAPES.sub('', output).splitlines()]
    for line in log_of(work_dir).splitlines():
        if 'Epoch(val)' in line or 'Saving checkpoint' in line:
            text = re.escape(line.partition(' - ')[2].rstrip())
            assert any(re.fullmatch(f'{TIME} - {text}', other) for other in shown), text


def test_a_file_gets_lines_alone(file):
    assert BAR not in file[1]
    assert '\x1b[' not in file[1]
    assert 'Epoch(val) [7][3/3]' in file[1]


def test_both_say_what_will_be_trained(terminal, file):
    for text in (log_of(terminal[0]), ESCAPES.sub('', terminal[1]), log_of(file[0]), file[1]):
        assert 'Training setup:' in text
        assert re.search(r'teacher +ResNet_CIFAR, 0\.\d+ M parameters', text)
        assert re.search(r"teacher's accuracy +\d+\.\d % on the validation set", text)
        assert re.search(r'student +VisionTransformer, 0\.\d+ M parameters', text)
        assert re.search('loss dfra +DFRALoss of logits, stage_logits, fused_logits', text)
        assert re.search('taps +stage1 backbone.layers.0, stage2', text)
        assert re.search('data +40 images, batches of 10', text)
        assert re.search('steps +28 in 7 epochs', text)
        assert re.search(r'Expected time: \d+ s for the remaining 3 steps', text)


def test_a_line_an_epoch(file):
    form = (
        r'epoch (\d)/7  lr 1\.00e-02  loss \d+\.\d{4}  student \d+\.\d{4}  accuracy (.+) %  \d+ s'
    )
    lines = [line.partition('INFO - ')[2] for line in log_of(file[0]).splitlines()]
    found = [match for match in map(re.compile(form).fullmatch, lines) if match]
    assert [match[1] for match in found] == [*'1234567']
    assert all(len(match[0]) <= 100 for match in found)
    text = log_of(file[0])
    assert re.search(rf'Trained in \d+ s, accuracy {found[-1][2]} %, best .*, teacher ', text)
    assert 'the validation set has 30 images: the standard error' in text


def test_turned_off_it_shows_nothing_and_the_weights_are_the_same(terminal, file, tmp_path):
    work_dir = tmp_path / 'run'
    code, output = on_terminal(WORKER, work_dir, 'off')
    assert code == 0, output
    assert BAR not in output and 'Training setup' not in output
    assert 'Teacher on the validation set' in output
    wanted = weights(work_dir)
    for other in (terminal[0], file[0]):
        got = weights(other)
        assert wanted.keys() == got.keys()
        assert all(torch.equal(wanted[key], got[key]) for key in wanted)


def test_an_error_gives_the_terminal_back(tmp_path):
    code, output = on_terminal(WORKER, tmp_path / 'run', 'failing')
    assert code == 1
    assert BAR in output
    assert output.rindex(SHOWS_CURSOR) > output.rindex(HIDES_CURSOR)
    # Python 3.13 colours the traceback.
    assert 'RuntimeError: on purpose' in ESCAPES.sub('', output[output.rindex(SHOWS_CURSOR) :])


def test_no_bars_without_a_terminal(monkeypatch):
    for is_terminal in (True, False):
        monkeypatch.setattr(sys.stderr, 'isatty', lambda it=is_terminal: it, raising=False)
        open_bars()
        assert is_open() == is_terminal
        close_bars()


def test_stdout_in_a_file_gets_the_log(tmp_path):
    code, output = on_terminal(WORKER, tmp_path / 'run', stdout=tmp_path / 'out.txt')
    assert code == 0
    assert BAR in output and 'Epoch(val)' not in output
    text = (tmp_path / 'out.txt').read_text()
    assert 'Epoch(val) [7][3/3]' in text and BAR not in text and '\x1b[?25' not in text


def test_a_model_without_a_teacher(tmp_path):
    hooks = dict(progress=dict(type='ProgressHook'))
    model = resnet(data_preprocessor=dict(num_classes=10))
    runner = train(model, tmp_path / 'run', default_hooks=hooks)
    assert any(isinstance(hook, ProgressHook) for hook in runner.hooks)
    assert re.search(r'model +ResNet_CIFAR, 0\.\d+ M parameters', log_of(tmp_path / 'run'))


def test_it_comes_after_the_teachers_accuracy(tmp_path):
    hooks = dict(
        progress=dict(type='ProgressHook'), teacher_accuracy=dict(type='TeacherAccuracyHook')
    )
    train(mldr(teacher=vit()), tmp_path / 'run', default_hooks=hooks)
    assert "teacher's accuracy" in log_of(tmp_path / 'run')


class CacheStates(Hook):
    """Records the text that the bar shows about the teacher cache."""

    def __init__(self, states):
        self.states = states

    def after_train_epoch(self, runner):
        self.states.append(_cached(runner))


@pytest.mark.parametrize(
    ('cached', 'wanted'),
    [(False, ['', '']), (True, ['recording the teacher', 'reading the teacher'])],
)
def test_recording_of_the_teacher(tmp_path, cached, wanted):
    states = []
    config = runner_config(mldr(), tmp_path / 'run', max_epochs=2)
    if cached:
        config['train_dataloader']['sampler'] = dict(type='ViewSampler', shuffle=True, views=1)
        cache = dict(type='TeacherCacheHook', dir=str(tmp_path / 'cache'))
        config['default_hooks']['teacher_cache'] = cache
    runner = Runner.from_cfg(Config(config))
    runner.register_hook(CacheStates(states))
    runner.train()
    assert states == wanted


def test_a_loss_that_is_0_is_not_shown():
    """The student's own loss, without labels."""
    scalars = {'train/loss': 2.5, 'train/loss_student': 0.0}
    hub = {name: SimpleNamespace(mean=lambda count, v=value: v) for name, value in scalars.items()}
    runner = SimpleNamespace(message_hub=SimpleNamespace(log_scalars=hub))
    assert ProgressHook()._describe(runner, 'epoch', 1, 2) == ['epoch 1/2', 'loss 2.5000']


@pytest.mark.parametrize(
    ('seconds', 'text'),
    [
        (0.2, '0 s'),
        (59.6, '1 min 0 s'),
        (61, '1 min 1 s'),
        (3600, '1 h 0 min'),
        (90000, '25 h 0 min'),
    ],
)
def test_durations(seconds, text):
    assert _duration(seconds) == text

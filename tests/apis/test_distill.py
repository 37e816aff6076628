import contextlib
import copy
import dataclasses
import io
import json
import os
import re
import shutil
import signal
import subprocess
import sys
from importlib.machinery import ModuleSpec
from pathlib import Path
from types import ModuleType, SimpleNamespace

import pytest
import timm
import torch
from helpers import image_folder, resnet, vit
from mmengine.config import Config
from mmengine.logging import MessageHub
from mmengine.registry import VISBACKENDS

from mldr_kd_mm import ConfigError, distill, distill_config
from mldr_kd_mm.apis.configs import find_configs
from mldr_kd_mm.apis.options import VISUALIZERS, parse_options
from mldr_kd_mm.apis.recipe import baseline_config, find_models, teacher_config
from mldr_kd_mm.apis.teacher_record import is_recorded, record_teacher, teacher_fingerprint
from mldr_kd_mm.apis.training_images import read_training_images
from mldr_kd_mm.engine.hooks import StopSignalHook
from mldr_kd_mm.engine.knn_loop import bank_config
from mldr_kd_mm.registry import MODELS
from mldr_kd_mm.utils.checkpoint import load_checkpoint, student_state_dict

ROOT = Path(__file__).parents[2]
SMALL = dict(teacher='timm/test_vit', student='test_resnet', image_size=32, workers=0)
ALONE = dict(SMALL, teacher_pretrained=False)


@pytest.fixture(scope='module')
def folder(tmp_path_factory):
    return str(image_folder(tmp_path_factory.mktemp('images'), {'train': 16, 'val': 4}))


@pytest.fixture(scope='module')
def large_folder(tmp_path_factory):
    """Return a folder of 1,200 empty files, which no config reads."""
    root = tmp_path_factory.mktemp('large')
    for split, count in (('train', 600), ('val', 1)):
        for name in 'ab':
            (root / split / name).mkdir(parents=True)
            for number in range(count):
                (root / split / name / f'{number}.png').touch()
    return str(root)


@pytest.fixture(scope='module')
def console():
    """Return the file that gets what `distilled` prints."""
    return io.StringIO()


@pytest.fixture(scope='module')
def distilled(folder, tmp_path_factory, console):
    """Return the result of a distillation of two epochs, which trains its teacher first."""
    work_dir = tmp_path_factory.mktemp('run')
    with contextlib.redirect_stdout(console), contextlib.redirect_stderr(console):
        return distill(**ALONE, data=folder, epochs=2, work_dir=str(work_dir))


def test_the_console_is_short_and_the_log_complete(distilled, console):
    lines = console.getvalue().splitlines()
    assert len(lines) <= 32  # the command adds a greeting and the results
    epochs = [line for line in lines if line.startswith('epoch ')]
    assert [line.split()[1] for line in epochs] == ['1/2', '2/2'] * 2
    assert all(len(line) <= 100 for line in epochs)
    form = r'epoch 2/2  lr \S+  loss [\d.]+  student [\d.]+  accuracy [\d.]+ %  \d+ s'
    assert re.fullmatch(form, epochs[-1])
    loss, own, accuracy = (float(epochs[-1].split()[place]) for place in (5, 7, 9))
    work_dir = Path(distilled.work_dir)
    (scalars,) = work_dir.glob('2*/vis_data/scalars.json')
    records = [json.loads(line) for line in scalars.read_text().splitlines()]
    last = [record for record in records if record.get('epoch') == 2][-1]
    parts = [value for name, value in last.items() if name.startswith('loss_')]
    assert last['loss'] == pytest.approx(sum(parts), rel=1e-4)  # the file has the window's mean
    assert 0 < own < loss and accuracy == pytest.approx(distilled.accuracy, abs=0.051)
    (log,) = (path.read_text() for path in work_dir.glob('2*/*.log'))
    for text in ('System environment', 'Config:', 'Hooks will be executed', 'Epoch(train) [2]'):
        assert text in log and text not in console.getvalue()
    for line in lines:
        if line.startswith('epoch ') and line in log:
            break
    else:
        raise AssertionError('the log has no line of an epoch')
    assert console.getvalue().count('warning: the validation set has 12 images') == 1


@pytest.fixture
def load_base():
    return lambda name: Config.fromfile(ROOT / f'configs/_base_/{name}.py')


def test_what_comes_out(distilled, folder):
    work_dir = Path(distilled.work_dir)
    logs = sorted(work_dir.glob('2*/vis_data/scalars.json'))
    records = [json.loads(line) for line in logs[0].read_text().splitlines()]
    accuracies = [r['accuracy/top1'] for r in records if 'accuracy/top1' in r]
    teacher = [r['teacher/accuracy/top1'] for r in records if 'teacher/accuracy/top1' in r]

    assert distilled.accuracy == pytest.approx(accuracies[-1])
    assert distilled.best_accuracy == pytest.approx(max(accuracies))
    assert distilled.teacher_accuracy == pytest.approx(teacher[0])
    assert Path(distilled.checkpoint).name == 'epoch_2.pth'
    assert (work_dir / 'teacher/epoch_2.pth').is_file()


def test_signal_in_the_last_validation_of_the_teacher_ends_it(folder, tmp_path, monkeypatch):
    def stop(*_, **__):
        os.kill(os.getpid(), signal.SIGTERM)

    monkeypatch.setattr(StopSignalHook, 'after_val_epoch', stop)
    with pytest.raises(SystemExit) as stopped:
        distill(**ALONE, data=folder, epochs=1, work_dir=str(tmp_path))
    assert stopped.value.code == 143
    assert (tmp_path / 'teacher/epoch_1.pth').is_file()
    assert not [*tmp_path.glob('*.pth')]


def test_the_student_loads_in_timm(distilled):
    student = timm.create_model('test_resnet', num_classes=3, checkpoint_path=distilled.student)
    trained = student_state_dict(load_checkpoint(distilled.checkpoint))
    assert all(torch.equal(trained[key], value) for key, value in student.state_dict().items())
    assert (Path(distilled.work_dir) / 'student.md').is_file()


def test_timm_measures_the_same_accuracy(distilled, folder):
    model = timm.create_model(f'local-dir:{distilled.folder}', pretrained=True).eval()
    data = timm.data.create_dataset('', Path(folder, 'val'))
    data.transform = timm.data.create_transform(**timm.data.resolve_model_data_config(model))
    images, labels = zip(*data, strict=True)
    with torch.no_grad():
        correct = model(torch.stack(images)).argmax(1) == torch.tensor(labels)
    assert 100 * correct.float().mean().item() == pytest.approx(distilled.accuracy, abs=1e-4)
    assert [*model.pretrained_cfg['label_names']] == ['a', 'b', 'c']
    for card in ('student.md', 'student/README.md'):
        text = Path(distilled.work_dir, card).read_text()
        assert f'accuracy/top1: last {distilled.accuracy:.2f}' in text


@pytest.mark.parametrize(('export', 'accuracy'), [('last', 20.0), ('best', 30.0)])
def test_what_is_exported(monkeypatch, export, accuracy):
    module = sys.modules['mldr_kd_mm.apis.distill']
    monkeypatch.setattr(module, '_export', lambda checkpoint, _: (checkpoint, ''))
    hub = MessageHub('test_what_is_exported')
    for value in (10.0, 30.0, 20.0):
        hub.update_scalar('val/accuracy/top1', value)
    hub.update_info_dict(dict(last_ckpt='epoch_3', best_ckpt='epoch_2'))
    result = module._result(Config(dict(work_dir='')), hub, export)
    assert (result.accuracy, result.best_accuracy) == (accuracy, 30.0)
    assert result.student == dict(last='epoch_3', best='epoch_2')[export]
    assert result.checkpoint == 'epoch_3'


def test_the_baseline_has_the_same_recipe(folder):
    cfg = distill_config(**SMALL, data=folder, teacher_checkpoint='t.pth')
    alone = baseline_config(cfg)
    assert alone.model == cfg.model.student
    assert alone.work_dir == f'{cfg.work_dir}/baseline'
    assert {key for key in cfg if cfg[key] != alone[key]} == {'model', 'work_dir'}


def test_sizes_of_each_model(folder):
    sizes = dict(image_size=32, teacher_size=64, student_size=48)
    options = dict(SMALL, data=folder, teacher_checkpoint='t.pth')
    for left_out, teacher, student in ((None, 64, 48), ('teacher_size', 32, 48)):
        given = {name: size for name, size in sizes.items() if name != left_out}
        cfg = distill_config(**options | given)
        assert cfg.model.input_size == (3, student, student)
        assert cfg.model.teacher_input_size == (3, teacher, teacher)
        assert cfg.model.teacher.img_size == teacher
        assert cfg.val_dataloader.dataset.pipeline[-2].crop_size == student


@pytest.mark.parametrize('name', VISUALIZERS)
def test_visualizers(folder, monkeypatch, name):
    monkeypatch.delenv('MLFLOW_TRACKING_URI', raising=False)
    monkeypatch.setitem(sys.modules, name, ModuleType(name))
    sys.modules[name].__spec__ = ModuleSpec(name, None)
    cfg = distill_config(**SMALL, data=folder, visualizer=name)
    local, backend = cfg.visualizer.vis_backends
    assert local.type == 'LocalVisBackend'
    assert backend.get('tracking_uri') == ('sqlite:///mlflow.db' if name == 'mlflow' else None)
    VISBACKENDS.build(dict(backend, save_dir='nowhere'))


@pytest.mark.slow
def test_the_printed_config_trains_the_same(distilled, folder, tmp_path):
    teacher = str(Path(distilled.work_dir, 'teacher/epoch_2.pth'))
    cfg = distill_config(**ALONE, data=folder, epochs=2, teacher_checkpoint=teacher)
    config = tmp_path / 'printed.py'
    config.write_text(cfg.pretty_text)

    train = [sys.executable, ROOT / 'tools/train.py', config, '--work-dir', tmp_path / 'run']
    environment = os.environ | {'OMP_NUM_THREADS': '1', 'PYTHONPATH': str(ROOT)}
    done = subprocess.run(train, env=environment, capture_output=True, text=True)

    assert done.returncode == 0, done.stderr
    wanted, got = (
        load_checkpoint(str(path))['state_dict']
        for path in (distilled.checkpoint, tmp_path / 'run/epoch_2.pth')
    )
    assert wanted.keys() == got.keys()
    assert all(torch.equal(wanted[key], got[key]) for key in wanted)


@pytest.mark.slow
def test_resume(folder, tmp_path):
    work_dir = tmp_path / 'run'
    distill(
        **ALONE, data=folder, epochs=1, teacher_epochs=1, teacher_lr=3e-3, work_dir=str(work_dir)
    )
    (teacher_log,) = (work_dir / 'teacher').glob('*/vis_data/scalars.json')
    assert '"lr": 0.003,' in teacher_log.read_text()
    teacher = work_dir / 'teacher/epoch_1.pth'
    written = teacher.stat().st_mtime_ns

    options = dict(ALONE, data=folder, epochs=2, teacher_epochs=1, work_dir=str(work_dir))
    result = distill(**options, resume=True)
    again = distill(**options, resume=True)

    assert teacher.stat().st_mtime_ns == written
    assert Path(result.checkpoint).name == 'epoch_2.pth'
    log = sorted(work_dir.glob('2*/*.log'))[1].read_text()
    assert 'resumed epoch: 1' in log and 'Epoch(train) [1]' not in log
    assert 'train_cfg.max_epochs: 1 -> 2' in log
    assert 'the schedules are rebuilt for max_epochs=2;' in log
    assert again == result


def test_a_used_work_directory(distilled, folder):
    files = [Path(distilled.checkpoint), Path(distilled.student)]
    before = [file.stat().st_mtime_ns for file in files]
    options = dict(ALONE, data=folder, epochs=3, method='kd', work_dir=distilled.work_dir)
    with pytest.raises(ConfigError, match='has checkpoints of an earlier run'):
        distill(**options)
    assert [file.stat().st_mtime_ns for file in files] == before


@pytest.mark.parametrize(
    'files, wanted',
    [
        ([], ('weights', False)),
        (['pretrained.pth', 'last_checkpoint'], ('weights', False)),
        (['pretrained.pth', 'epoch_1.pth'], (None, True)),
    ],
)
def test_resume_of_the_teacher(tmp_path, monkeypatch, files, wanted):
    """Without a checkpoint it begins with its pretrained weights."""
    for name in files:
        (tmp_path / name).touch()
    called = []
    module = sys.modules['mldr_kd_mm.apis.distill']
    monkeypatch.setattr(module, 'fetch_pretrained', lambda *_: 'weights')
    monkeypatch.setattr(module, '_train', lambda *args: called.append(args))
    options = SimpleNamespace(teacher_pretrained=True, teacher='timm/vit', epochs_of_teacher=1)
    cfg = Config(dict(work_dir=str(tmp_path), load_from=None))

    module._train_teacher(options, SimpleNamespace(name='vit'), cfg, 'epoch_9.pth', resume=True)

    assert [(cfg.load_from, resume) for cfg, resume in called] == [wanted]


class TestTeacherInit:
    """A teacher of other classes is fine-tuned from a file."""

    class Started(Exception):
        """The training of the teacher would begin."""

    @pytest.fixture
    def start(self, folder, tmp_path, monkeypatch):
        """Return a function that starts a run with a file; it returns the teacher's config."""

        def train(cfg, resume):
            raise self.Started(cfg)

        monkeypatch.setattr(sys.modules['mldr_kd_mm.apis.distill'], '_train', train)

        def start(path, **options):
            with pytest.raises(self.Started) as started:
                distill(
                    **SMALL,
                    data=folder,
                    work_dir=str(tmp_path / 'run'),
                    teacher_init=path,
                    **options,
                )
            return started.value.args[0]

        return start

    def test_is_where_the_teacher_starts(self, start, tmp_path):
        path = str(tmp_path / 'vit.pth')
        vit = timm.create_model('test_vit', num_classes=7, img_size=32)
        torch.save({'model': vit.state_dict()}, path)
        assert start(path).load_from == path

    def test_of_another_model(self, start, tmp_path):
        path = str(tmp_path / 'resnet.pth')
        torch.save(timm.create_model('test_resnet', num_classes=3).state_dict(), path)
        with pytest.raises(ConfigError, match=f'load_from={path!r}: .* missing cls_token'):
            start(path)
        with pytest.raises(ConfigError, match="teacher_init='lost.pth': there is no such file"):
            start('lost.pth')


@pytest.mark.parametrize(
    'options, message',
    [
        (
            dict(teacher_init='b.pth', teacher_epochs=0),
            r"teacher_init='b.pth': .*\(teacher_epochs=0",
        ),
        (
            dict(teacher_lr=0.1, teacher_checkpoint='a.pth'),
            r'teacher_lr=0.1: .*\(teacher_checkpoint',
        ),
        (dict(teacher_epochs=3, teacher_checkpoint='a.pth'), 'teacher_epochs=3: must not be set'),
        (dict(teacher_lr=0.1, teacher=torch.nn.Flatten()), r'teacher_lr=0.1: .*\(a module is'),
    ],
)
def test_options_for_a_teacher_that_is_not_trained(folder, options, message):
    with pytest.raises(ConfigError, match=message):
        distill_config(**{**SMALL, **options}, data=folder)


def test_a_teacher_of_other_classes(distilled, tmp_path):
    other = str(image_folder(tmp_path / 'two', {'': 20}, classes='ab'))
    teacher = str(Path(distilled.work_dir, 'teacher/epoch_2.pth'))
    message = 'its head has 3 classes, the model 2; give it as teacher_init instead, to fine-tun'
    with pytest.raises(ConfigError, match=message):
        distill(**SMALL, data=other, epochs=1, teacher_checkpoint=teacher)
    to_measure = str(image_folder(tmp_path / 'few', {'val': 2}, classes='ab'))
    message = "its head has 3 classes, the model 2; val/ of data='.*few' must have all classes of"
    with pytest.raises(ConfigError, match=message):
        distill(**SMALL, data=to_measure, unlabeled=other, epochs=1, teacher_checkpoint=teacher)


def test_pretrained_weights_of_other_classes(folder):
    with pytest.raises(ConfigError, match=r"weights of 'test_vit' have 1000 classes.* has 3"):
        distill_config(**SMALL, data=folder, teacher_epochs=0)


@pytest.mark.parametrize('epochs', [300, 40])
@pytest.mark.parametrize(
    ('student', 'schedule'), [('test_resnet', 'cnn'), ('timm/test_vit', 'transformer')]
)
def test_the_recipe_is_the_shipped_one(large_folder, load_base, student, schedule, epochs):
    options = dict(SMALL, student=student, data=large_folder, epochs=epochs, batch_size=128)
    cfg, base = distill_config(**options), load_base(f'schedules/{schedule}_{epochs}e')
    assert cfg.param_scheduler == base.param_scheduler
    assert cfg.optim_wrapper == base.optim_wrapper
    assert cfg.default_hooks == load_base('default_runtime').default_hooks


@pytest.mark.parametrize('epochs', [1, 2, 7, 8, 25])
def test_a_short_recipe_fits_its_epochs(folder, epochs):
    cfg = distill_config(**SMALL, data=folder, epochs=epochs)
    *warm_up, cosine = cfg.param_scheduler
    assert cosine.end == cfg.train_cfg.max_epochs == epochs
    assert cosine.begin + cosine.T_max <= epochs
    assert all(scheduler.end == cosine.begin + 1 <= epochs for scheduler in warm_up)
    assert bool(warm_up) == (epochs >= 8)


def test_rates_go_with_the_batch(folder):
    cfg = distill_config(**SMALL, data=folder, batch_size=32)
    assert cfg.optim_wrapper.optimizer.lr == pytest.approx(0.05 / 4)
    assert cfg.param_scheduler[-1].eta_min == pytest.approx(1e-3 / 4)
    cfg = distill_config(**SMALL, data=folder, batch_size=32, lr=0.1)
    assert cfg.optim_wrapper.optimizer.lr == pytest.approx(0.1)
    assert cfg.param_scheduler[-1].eta_min == pytest.approx(2e-3)


@pytest.mark.parametrize(
    ('batch_size', 'used', 'scale'),
    [(512, 512, 4), (640, 640, 4), (1200, 1200, 4), (4096, 1200, 4), (64, 64, 0.5)],
)
def test_rates_of_large_batches(large_folder, batch_size, used, scale):
    cfg = distill_config(**SMALL, data=large_folder, batch_size=batch_size)
    assert cfg.train_dataloader.batch_size == used
    assert cfg.optim_wrapper.optimizer.lr == pytest.approx(0.05 * scale)


def test_a_batch_is_at_most_the_folder(folder):
    """4096 images a batch would scale the learning rate to 1.6."""
    cfg = distill_config(**SMALL, data=folder, batch_size=4096)
    assert cfg.train_dataloader.batch_size == 48
    assert not cfg.train_dataloader.drop_last
    assert cfg.optim_wrapper.optimizer.lr == pytest.approx(0.05 * 48 / 128)
    cfg = distill_config(**SMALL, data=folder, batch_size=4096, lr=0.3)
    assert cfg.optim_wrapper.optimizer.lr == pytest.approx(0.3)


def test_a_zip_file(folder, tmp_path):
    shutil.make_archive(tmp_path / 'photos', 'zip', Path(folder).parent, Path(folder).name)
    cfg = distill_config(**SMALL, data=str(tmp_path / 'photos.zip'))
    root = Path(cfg.train_dataloader.dataset.data_root)
    assert root.parent.parent == tmp_path and root.parent.name.startswith('photos_')
    assert len([*root.glob('*/*/*.png')]) == 60
    again = distill_config(**SMALL, data=str(tmp_path / 'photos.zip'))
    assert again.pretty_text == cfg.pretty_text


def test_a_file_that_is_no_zip_file(folder, tmp_path):
    (tmp_path / 'photos.tar').write_bytes(b'no zip file')
    with pytest.raises(ConfigError, match="photos.tar': must be a folder or a zip file of images"):
        distill_config(**SMALL, data=str(tmp_path / 'photos.tar'))


class TestReusedTeacher:
    @pytest.fixture
    def run(self, distilled, folder, tmp_path, monkeypatch):
        """Return a function that lists the runs of a distillation beside a trained teacher."""
        shutil.copytree(Path(distilled.work_dir, 'teacher'), tmp_path / 'teacher')

        class Started(Exception):
            pass

        def train(cfg, resume):
            raise Started(Path(cfg.work_dir).name)

        monkeypatch.setattr(sys.modules['mldr_kd_mm.apis.distill'], '_train', train)

        def start(**changes):
            options = ALONE | dict(data=folder, epochs=2, work_dir=str(tmp_path)) | changes
            with pytest.raises(Started) as started:
                distill(**options)
            return str(started.value)

        return start

    def test_with_another_method_and_place(self, run, tmp_path, folder):
        shutil.copytree(folder, tmp_path / 'elsewhere')
        assert run(method='kd', data=str(tmp_path / 'elsewhere'), lr=0.01) == tmp_path.name
        (tmp_path / 'teacher/teacher.json').unlink()
        assert run(resume=True) == tmp_path.name

    def test_with_other_options(self, run, tmp_path):
        with pytest.raises(ConfigError, match='teacher.*has checkpoints of an earlier run'):
            run(teacher_lr=0.01)
        assert run(teacher_lr=0.01, overwrite=True) == 'teacher'
        assert not (tmp_path / 'teacher/epoch_2.pth').exists()

    def test_a_mistake_about_the_teacher_deletes_nothing(self, run, tmp_path):
        (tmp_path / 'epoch_2.pth').touch()
        torch.save({'state_dict': {'x': torch.zeros(1)}}, tmp_path / 'wrong.pth')
        before = {*tmp_path.rglob('*.pth')}
        with pytest.raises(ConfigError, match='0 weights matched'):
            run(teacher_init=str(tmp_path / 'wrong.pth'), overwrite=True)
        assert {*tmp_path.rglob('*.pth')} == before

    def test_what_counts(self, folder, tmp_path):
        options = parse_options(**ALONE, data=folder, epochs=2)
        images = read_training_images(options)
        teacher, _ = find_models(options, images.num_classes)
        cfg = Config(dict(model=dict(teacher_checkpoint='teacher/epoch.pth')))
        cfg = teacher_config(options, images, teacher, cfg)
        here = teacher_fingerprint(options, images, cfg)

        moved = copy.deepcopy(cfg)
        moved.merge_from_dict({'work_dir': 'x', 'train_dataloader.num_workers': 3})
        moved.train_dataloader.dataset.data_root = 'elsewhere'
        assert teacher_fingerprint(options, images, moved) == here

        found = {here}
        for field, value in (
            ('model.model_name', 'test_vit2'),
            ('optim_wrapper.optimizer.lr', 0.01),
            ('train_cfg.max_epochs', 3),
            ('train_dataloader.batch_size', 8),
            ('randomness.seed', 1),
        ):
            other = copy.deepcopy(cfg)
            other.merge_from_dict({field: value})
            found.add(teacher_fingerprint(options, images, other))
        init = tmp_path / 'init.pth'
        for content in (b'1', b'2'):
            init.write_bytes(content)
            started = dataclasses.replace(options, teacher_init=str(init))
            found.add(teacher_fingerprint(started, images, cfg))
        pretrained = dataclasses.replace(options, teacher_pretrained=True)
        found.add(teacher_fingerprint(pretrained, images, cfg))
        shutil.copytree(folder, tmp_path / 'more')
        shutil.copy(tmp_path / 'more/train/a/0.png', tmp_path / 'more/train/a/new.png')
        more = read_training_images(dataclasses.replace(options, data=str(tmp_path / 'more')))
        found.add(teacher_fingerprint(options, more, cfg))
        assert len(found) == 10

    def test_damaged_records(self, distilled, tmp_path):
        checkpoint = tmp_path / 'epoch_2.pth'
        shutil.copy(Path(distilled.work_dir, 'teacher/epoch_2.pth'), checkpoint)
        record_teacher(checkpoint, 'abc')
        assert is_recorded(checkpoint, 'abc') and not is_recorded(checkpoint, 'abd')
        shutil.copy(distilled.checkpoint, checkpoint)  # of another run
        assert not is_recorded(checkpoint, 'abc')
        for content in (b'', b'{}', b'[3]', b'\xff', b'[' * 9999):
            checkpoint.with_name('teacher.json').write_bytes(content)
            assert not is_recorded(checkpoint, 'abc')


def test_a_teacher_below_the_student_alone(monkeypatch):
    module, logged = sys.modules['mldr_kd_mm.apis.distill'], []
    monkeypatch.setattr(module, 'print_log', lambda text, *_: logged.append(text))
    result = module.Distilled('', 50.0, 50.0, 40.0, '', '', '', 45.0)
    for other in (dict(teacher_accuracy=45.0), dict(teacher_accuracy=None)):
        module._judge_teacher(result._replace(**other))
    assert not logged
    module._judge_teacher(result)
    assert "teacher's accuracy, 40.0 %, is below that of the student alone, 45.0 %" in logged[0]


def test_gradients_are_clipped(folder):
    adaptive = [dict(type='mldr_kd_mm.AdaptiveClipHook')]
    assert distill_config(**SMALL, data=folder).custom_hooks == adaptive
    for options, max_norm in ((dict(clip_grad=2.0), 2.0), (dict(student='timm/test_vit'), 5.0)):
        cfg = distill_config(**{**SMALL, **options}, data=folder)
        assert cfg.optim_wrapper.clip_grad == dict(max_norm=max_norm)
        assert 'custom_hooks' not in cfg


def test_a_small_folder_gets_small_batches(folder):
    assert distill_config(**SMALL, data=folder).train_dataloader.batch_size == 16


# deit needs a student with two heads: test_distillation_token.py.
@pytest.mark.parametrize('method', sorted({*find_configs('_base_/methods')} - {'deit'}))
def test_methods(folder, method):
    cfg = distill_config(**SMALL, data=folder, method=method, teacher_checkpoint='later.pth')
    cfg.model.teacher_checkpoint = None
    cfg.model.data_preprocessor = cfg.data_preprocessor
    assert MODELS.build(cfg.model).losses
    assert cfg.work_dir == f'work_dirs/test_vit_to_test_resnet_{method}'


def test_each_model_gets_what_it_was_made_for(folder):
    cfg = distill_config('test_vit', 'mobilenetv2_100', folder)
    assert cfg.model.input_size == (3, 224, 224)
    assert cfg.model.teacher_input_size == (3, 160, 160)
    assert cfg.model.teacher.data_preprocessor.mean == [127.5] * 3
    assert cfg.data_preprocessor.mean == [123.675, 116.28, 103.53]


@pytest.mark.parametrize('side', ['student', 'teacher'])
def test_a_model_of_bgr_images_gets_them(folder, side):
    """mmpretrain's RegNetX was trained on BGR, with its statistics in that order."""
    named = dict(SMALL, teacher_pretrained=False) | {side: 'mmpretrain/regnetx-400mf_8xb128_in1k'}
    cfg = distill_config(**named, data=folder, method='kd')
    own = cfg.model[side]['data_preprocessor']
    preprocessor = MODELS.build({**cfg.data_preprocessor, **own})
    red = torch.zeros(3, 4, 4, dtype=torch.uint8)
    red[2] = 255  # files are read as BGR
    pixel = preprocessor(dict(inputs=[red], data_samples=None))['inputs'][0, :, 0, 0]
    assert pixel.tolist() == pytest.approx([-103.53 / 57.375, -116.28 / 57.12, 131.325 / 58.395])
    other = 'teacher' if side == 'student' else 'student'
    assert 'to_rgb' not in (cfg.model[other].get('data_preprocessor') or {})
    assert cfg.data_preprocessor.to_rgb
    if side == 'student':
        alone = baseline_config(cfg).model
        assert alone['data_preprocessor']['to_rgb'] is False
    else:
        parsed = parse_options(**named, data=folder, method='kd')
        images = read_training_images(parsed)
        trained = teacher_config(parsed, images, find_models(parsed, images.num_classes)[0], cfg)
        assert trained.model['data_preprocessor'] == {**trained.data_preprocessor, **own}


def test_a_transformer_is_augmented_more(folder):
    def types(cfg):
        return [step.type for step in cfg.train_dataloader.dataset.pipeline]

    strong = distill_config('test_vit', 'test_vit', folder)
    assert 'RandAugment' in types(strong) and strong.model.student.train_cfg.augments
    light = distill_config('test_vit', 'test_vit', folder, augmentation='light')
    assert types(light) == ['LoadImageFromFile', 'Resize', 'RandomCrop', 'PackInputs']
    assert 'train_cfg' not in light.model.student
    assert 'RandAugment' not in types(distill_config('test_vit', 'test_resnet', folder))


def test_models_and_method_as_dicts(folder, tmp_path):
    method = dict(losses=[dict(loss=dict(type='KDLoss'), name='kd')])
    result = distill(
        vit(3),
        resnet(3),
        folder,
        method,
        epochs=1,
        image_size=32,
        workers=0,
        augmentation='light',
        work_dir=str(tmp_path / 'run'),
    )
    assert Path(result.student).is_file()


@pytest.mark.parametrize(
    ('changes', 'message'),
    [
        (dict(data='/nowhere'), 'there is no such folder'),
        (dict(data=3), 'data=3: must be the path'),
        (dict(method='mldrr'), "method='mldrr': there is no .* did you mean mldr"),
        (dict(method='scratch'), "method='scratch': must be a name"),
        (dict(method={}), 'method={}: must be a name, a path, or a dict with losses'),
        (dict(student='test_resnot'), "student='test_resnot': neither .*did you mean test_resnet"),
        (dict(epochs=0), 'epochs=0: must be a positive integer'),
        (dict(batch_size=-1), 'batch_size=-1'),
        (dict(image_size='32'), "image_size='32'"),
        (dict(image_size=0), 'image_size=0: must be a positive integer'),
        (dict(student_size=-32), 'student_size=-32: must be a positive integer'),
        (dict(visualizer='paper'), "visualizer='paper': must be 'tensorboard' or 'wandb' or"),
        (dict(visualizer='wandb'), "visualizer='wandb': is not installed; run pip install wandb"),
        (dict(lr=0), 'lr=0: must be'),
        (dict(teacher_lr='fast'), "teacher_lr='fast': must be"),
        (dict(clip_grad=-5), 'clip_grad=-5: must be'),
        (dict(workers=-1), 'workers=-1'),
        (dict(seed=0.5), 'seed=0.5'),
        (dict(augmentation='heavy'), "augmentation='heavy': must be 'recipe' or 'light'"),
        (dict(teacher_pretrained='no'), "teacher_pretrained='no': must be True or False"),
        (dict(speed=3), "no argument 'speed'; it takes teacher, student"),
    ],
)
def test_mistakes(folder, changes, message, monkeypatch):
    monkeypatch.setitem(sys.modules, 'wandb', None)
    with pytest.raises(ConfigError, match=message):
        distill_config(**dict(SMALL, data=folder) | changes)


def test_a_misfit_is_found_before_the_teacher_is_trained(folder, tmp_path):
    method = dict(losses=[dict(loss=dict(type='KDLoss'), teacher='stage9')])
    with pytest.raises(ConfigError, match="teacher='stage9': unknown tensor"):
        distill(**ALONE, data=folder, method=method, work_dir=str(tmp_path / 'run'))
    assert not (tmp_path / 'run').exists()


class TestUnlabeled:
    """Images without labels; test_unlabeled_page.py trains on them."""

    def read(self, **options):
        return read_training_images(parse_options(**{**ALONE, **options}))

    @pytest.fixture
    def others(self, tmp_path):
        return str(image_folder(tmp_path / 'others', {'': 2}))

    @pytest.mark.parametrize(
        ('options', 'message'),
        [
            (dict(), '^data: must be the path of a folder or a zip file of images, unless unlabel'),
            (dict(unlabeled=3), 'unlabeled=3: must be the path of a folder or a zip file .* text'),
            (dict(unlabeled='x', unlabeled_ratio=0.5), 'unlabeled_ratio=0.5: must not be set with'),
            (
                dict(data='x', unlabeled='x', unlabeled_ratio=1.0),
                'unlabeled_ratio=1.0: must be a number between 0 and 1',
            ),
            (dict(unlabeled='x'), '^teacher_checkpoint: must be set without labelled images'),
            (dict(unlabeled='no', teacher_epochs=0), "^unlabeled: 'no' cannot be listed"),
        ],
        ids=str,
    )
    def test_errors(self, options, message):
        with pytest.raises(ConfigError, match=message):
            self.read(**options)

    def test_wrong_images(self, folder, tmp_path):
        (tmp_path / 'list.txt').write_text('no.png')
        with pytest.raises(ConfigError, match="^unlabeled='.*list.txt': line 1 names"):
            self.read(data=folder, unlabeled=str(tmp_path / 'list.txt'))
        with pytest.raises(ConfigError, match='^unlabeled=.*: there are no images in or below it'):
            self.read(data=folder, unlabeled=str(tmp_path))

    def test_what_needs_labels(self, others, tmp_path):
        options = dict(ALONE, teacher_epochs=0, unlabeled=others, work_dir=str(tmp_path / 'run'))
        for given, message in (
            (dict(baseline=True), 'baseline=True: must not be set without labelled images'),
            (dict(export='best'), "export='best': must be 'last' without validation images"),
        ):
            with pytest.raises(ConfigError, match=message):
                distill(**options, **given)

    def test_images_of_the_validation(self, folder, tmp_path):
        """Found before the teacher is trained."""
        options = dict(ALONE, data=folder, unlabeled=folder, epochs=1)
        with pytest.raises(ConfigError, match='12 of its 12 images are also in the unlabelled set'):
            distill(**options, work_dir=str(tmp_path / 'run'))
        assert not (tmp_path / 'run').exists()

    def test_classes_of_the_teacher(self, others, tmp_path):
        """From the names in a checkpoint, its head, pretrained weights, or the module itself."""
        model = timm.create_model('test_vit', num_classes=4)
        path = str(tmp_path / 'teacher.pth')
        torch.save(model.state_dict(), path)
        found = self.read(teacher_checkpoint=path, unlabeled=others)
        assert (found.num_classes, found.classes, found.epoch_length) == (4, (), 6)
        meta = dict(dataset_meta=dict(classes=list('wxyz')))
        torch.save(dict(state_dict=model.state_dict(), meta=meta), path)
        assert self.read(teacher_checkpoint=path, unlabeled=others).classes == tuple('wxyz')
        assert self.read(teacher_epochs=0, unlabeled=others).num_classes == 1000
        assert self.read(teacher=model, unlabeled=others, image_size=160).num_classes == 4

    def test_without_a_head(self, folder, others):
        """`embed` needs no classes; the labelled part of the images is its bank."""
        options = dict(SMALL, method='embed', unlabeled=others)
        assert distill_config(**options).val_cfg is None
        bank = bank_config(distill_config(**options, data=folder))
        assert bank['dataset']['type'] == 'mldr_kd_mm.ImageFolder'

    def test_parts_of_a_batch(self, folder, others):
        """By default no image is shown twice in an epoch; 48 images have labels."""
        found = self.read(data=folder, unlabeled=others)
        assert (found.unlabeled_ratio, found.epoch_length) == (pytest.approx(6 / 54, abs=1e-4), 54)
        cfg = distill_config(**ALONE, data=folder, unlabeled=others, unlabeled_ratio=0.75)
        assert cfg.train_dataloader.sampler.unlabeled_ratio == 0.75
        assert cfg.train_dataloader.dataset.type == 'mldr_kd_mm.MixedDataset'
        alone = baseline_config(cfg)
        assert alone.train_dataloader.dataset == cfg.train_dataloader.dataset.labeled
        assert alone.train_dataloader.sampler.type == 'mldr_kd_mm.ViewSampler'

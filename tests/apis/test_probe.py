"""``distill(method='embed')``, its exported backbone, its report, and ``probe``."""

from __future__ import annotations

import json
import re
import sys
from pathlib import Path

import numpy as np
import pytest
import timm
import torch
from helpers import image_folder
from torch.testing import assert_close

from mldr_kd_mm import ConfigError, distill, distill_config
from mldr_kd_mm.apis.info import describe
from mldr_kd_mm.apis.probe import Probed, open_student, probe
from mldr_kd_mm.cli import main
from mldr_kd_mm.engine.knn_loop import bank_config
from mldr_kd_mm.evaluation.linear_probe import LinearProbe
from mldr_kd_mm.utils.checkpoint import load_checkpoint
from mldr_kd_mm.visualization.report import make_report

OPTIONS = dict(
    teacher='timm/test_vit', student='test_resnet', method='embed', image_size=32, workers=0
)


@pytest.fixture(scope='module')
def folder(tmp_path_factory):
    return str(image_folder(tmp_path_factory.mktemp('images'), {'train': 12, 'val': 6}))


@pytest.fixture(scope='module')
def teacher(tmp_path_factory):
    """Return weights of a teacher with a head for other classes."""
    path = tmp_path_factory.mktemp('teacher') / 'teacher.pth'
    torch.manual_seed(0)
    torch.save(timm.create_model('test_vit', num_classes=7, img_size=32).state_dict(), path)
    return str(path)


@pytest.fixture(scope='module')
def result(folder, teacher, tmp_path_factory):
    work_dir = str(tmp_path_factory.mktemp('runs') / 'embed')
    return distill(**OPTIONS, data=folder, teacher_checkpoint=teacher, epochs=2, work_dir=work_dir)


class TestDistill:
    def test_models_have_no_head_and_see_no_label(self, folder, teacher):
        cfg = distill_config(**OPTIONS, data=folder, teacher_checkpoint=teacher, epochs=2)
        assert cfg.model.teacher.num_classes == cfg.model.student.num_classes == 0
        assert 'loss' not in cfg.model.student and 'train_cfg' not in cfg.model.student
        assert cfg.val_cfg == dict(type='KNNLoop') and cfg.test_cfg == dict(type='KNNTestLoop')
        of_ours = distill_config(
            **OPTIONS | dict(teacher='vit_32px', student='vit_32px'),
            data=folder,
            teacher_checkpoint=teacher,
        )
        assert of_ours.model.teacher.head is of_ours.model.student.head is None

    def test_unlabelled_images(self, folder, teacher, tmp_path):
        options = OPTIONS | dict(teacher_checkpoint=teacher, unlabeled=f'{folder}/train/a')
        alone = distill_config(**options)
        assert alone.model.student.num_classes == 0 and alone.get('val_cfg') is None
        mixed = distill_config(**options, data=folder)
        assert bank_config(mixed)['dataset']['type'] == 'mldr_kd_mm.ImageFolder'
        data = str(image_folder(tmp_path / 'few', {'val': 2}))
        with pytest.raises(ConfigError, match='^data=.*: must have training images, too, as meth'):
            distill_config(**options, data=data)

    def test_result(self, result):
        """Colours tell the classes, also to features that were never trained."""
        assert result.teacher_accuracy > 90 and result.accuracy > 60
        assert result.baseline_accuracy is None
        state = load_checkpoint(result.checkpoint)['state_dict']
        queue = state['losses.1.losses.0.queue']
        assert queue.shape == (8192, 64) and int(queue.any(1).sum()) == 72

    def test_exported_folder_is_the_backbone(self, result):
        model = timm.create_model(f'local-dir:{result.folder}', pretrained=True).eval()
        assert model.num_classes == 0
        images = torch.randn(2, 3, 32, 32)
        student, _ = open_student(result.work_dir)
        assert_close(model(images), student(images, mode='tensor'))
        card = Path(result.folder, 'README.md').read_text()
        assert f'Output: a feature of width {model.num_features}, no classes' in card
        assert 'image-feature-extraction' in card and 'label_names' not in card
        assert "- Student's own loss: none\n" in card
        assert f'- kNN accuracy/top1: last {result.accuracy:.2f}' in card
        facts = dict(describe(result.checkpoint))
        assert facts["teacher's kNN accuracy/top1"] == f'{result.teacher_accuracy:.2f}'
        assert facts["student's kNN accuracy/top1"].startswith(f'{result.accuracy:.2f}')
        (log,) = Path(result.work_dir).glob('2*/*.log')
        assert f'kNN accuracy {result.accuracy:.1f} %' in log.read_text()
        assert not re.search(r'student 0\.0', log.read_text())
        another = timm.create_model(f'local-dir:{result.folder}', pretrained=True, num_classes=5)
        assert another(images).shape == (2, 5)

    def test_report_shows_the_accuracies_without_predictions(self, result, tmp_path):
        page = make_report([result.work_dir], tmp_path).read_text()
        assert 'no figures of its models: the student has no head' in page
        assert f'{result.accuracy:.2f}' in page and f'{result.teacher_accuracy:.2f}' in page

    @pytest.mark.parametrize(
        ('wrong', 'message'),
        [
            (dict(baseline=True), 'baseline=True: must be False, as method='),
            (dict(teacher_checkpoint=None, teacher_pretrained=False), 'teacher_pretrained=False: '),
            (dict(teacher_checkpoint=None, teacher_epochs=3), 'teacher_epochs=3: must not be set'),
            (dict(teacher='torchvision/resnet18'), "teacher='torchvision/resnet18': cannot be"),
            (dict(student='hf/nobody/nothing'), "student='hf/nobody/nothing': cannot be built"),
        ],
        ids=str,
    )
    def test_wrong_options(self, wrong, message, folder, teacher):
        options = OPTIONS | dict(teacher_checkpoint=teacher) | wrong
        with pytest.raises(ConfigError) as caught:
            distill(**options, data=folder, work_dir='never')
        assert str(caught.value).startswith(message) and not Path('never').exists()


class TestProbe:
    def test_measures_a_run(self, result, folder, capsys):
        probed = probe(result.work_dir, folder, workers=0)
        # The vote is that of the validation after the last epoch.
        assert probed.knn == pytest.approx(result.accuracy, abs=1e-3)
        assert probed.linear > 60 and probed[2:] == (36, 18)
        main(['probe', result.checkpoint, '--data', folder, '--workers', '0', '--device', 'cpu'])
        assert json.loads(capsys.readouterr().out) == pytest.approx(probed._asdict())
        for exported in (result.folder, result.student):
            assert probe(exported, folder, workers=0) == pytest.approx(probed, abs=1e-3)

    def test_training_images_are_reported(self, teacher, tmp_path, capsys, monkeypatch):
        """The command that the run names holds out the same images."""
        monkeypatch.chdir(tmp_path)
        data = str(image_folder(tmp_path / 'images', {'': 12}))
        options = ['--seed', '3', '--val-fraction', '0.3']
        command = ['distill', '--teacher', 'test_vit', '--student', 'test_resnet', '--method']
        command += ['embed', '--image-size', '32', '--workers', '0', '--teacher-checkpoint']
        main([*command, teacher, '--data', data, '--epochs', '1', '--work-dir', 'run', *options])
        assert f' --data {data} {" ".join(options)}\n' in capsys.readouterr().out
        for extra, warns in ([], True), (options, False):
            main(['probe', 'run', '--data', data, '--workers', '0', *extra])
            text = ''.join(capsys.readouterr())
            assert ('validation images are among the training images of the' in text) is warns

    def test_a_terminal_gets_lines(self, monkeypatch, capsys):
        probed = Probed(61.333335876464844, 70.0, 36, 18)
        module = sys.modules['mldr_kd_mm.apis.probe']
        monkeypatch.setattr(module, 'probe', lambda **options: probed)
        monkeypatch.setattr(sys.stdout, 'isatty', lambda: True)
        main(['probe', 'run', '--data', 'folder'])
        assert capsys.readouterr().out == (
            'images:       36 for training, 18 for validation\n'
            'kNN:          61.3 %\n'
            'linear probe: 70.0 %\n'
        )
        main(['probe', 'run', '--data', 'folder', '--json'])
        assert json.loads(capsys.readouterr().out) == probed._asdict()

    @pytest.mark.parametrize('option', [dict(val_fraction=0.2), dict(seed=0)])
    def test_options_that_would_be_ignored(self, option, result, folder):
        (name,) = option
        with pytest.raises(
            ConfigError, match=f'^{name}=.*: must not be set, as no .*: it has val/'
        ):
            probe(result.work_dir, folder, **option)
        with pytest.raises(ConfigError, match=r'^val_fraction=0\.2: must not be set, as no images'):
            distill_config('test_vit', 'test_resnet', folder, val_fraction=0.2)

    def test_wrong_students(self, tmp_path, folder, teacher):
        for student, message in (
            (tmp_path, 'must be a file, an exported folder, or the work directory of a run'),
            (teacher, 'does not describe its images and classes; export it again'),
            ('a/student.onnx', 'must not be a graph, whose features cannot be read; give the ch'),
        ):
            with pytest.raises(ConfigError, match=f'^student={str(student)!r}: {message}'):
                probe(str(student), folder)
        with pytest.raises(ConfigError, match="^device='tpv': "):
            probe(teacher, folder, device='tpv')

    def test_folder_of_one_class(self, result, tmp_path):
        data = image_folder(tmp_path / 'one', {'train': 3, 'val': 2}, classes='a')
        with pytest.raises(ConfigError, match='has one class, .a.; must have') as caught:
            probe(result.work_dir, str(data))
        assert '\n' not in str(caught.value)


class TestLinearProbe:
    def test_is_the_logistic_regression_of_scikit_learn(self):
        linear_model = pytest.importorskip('sklearn.linear_model')
        random = np.random.default_rng(0)
        labels = random.integers(0, 3, 90)
        features = random.normal(size=(90, 5)) + labels[:, None] * [3, 0, -2, 0, 0]
        features[:, 3] = 1.0  # a dead unit
        std = np.where(features.std(0) > 0, features.std(0), 1)
        standardised = (features - features.mean(0)) / std
        expected = linear_model.LogisticRegression(max_iter=1000, tol=1e-10).fit(
            standardised, labels
        )
        found = LinearProbe(torch.from_numpy(features), torch.from_numpy(labels))
        assert_close(
            found.linear.weight.detach(), torch.from_numpy(expected.coef_), rtol=1e-3, atol=1e-4
        )
        predicted = found(torch.from_numpy(features)).numpy()
        assert (predicted == expected.predict(standardised)).all()

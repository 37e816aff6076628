"""A distillation through the command line: train, resume, test, and mistakes in its config."""

import re

import pytest
import torch
from helpers import mldr, resnet, runner_config, vit

from mldr_kd_mm.registry import MODELS

pytest.importorskip('sklearn', reason='needs scikit-learn, which holds the images')


@pytest.fixture
def config(tmp_path, monkeypatch):
    """Write a config, with its teacher's weights beside it; return its path."""
    torch.save(MODELS.build(vit()).state_dict(), tmp_path / 'teacher.pth')
    fields = runner_config(mldr(teacher_checkpoint=str(tmp_path / 'teacher.pth')), tmp_path / 'run')
    fields.update(test_dataloader=fields['val_dataloader'])
    fields.update(test_evaluator=fields['val_evaluator'], test_cfg={})
    path = tmp_path / 'digits.py'
    path.write_text('\n'.join(f'{name} = {value!r}' for name, value in fields.items()))
    monkeypatch.chdir(tmp_path)
    return path


def test_train_resume_and_test(config, tool, tmp_path):
    assert tool('train', config)[0] == 0
    more = ['--resume', '--cfg-options', 'train_cfg.max_epochs=2']
    assert tool('train', config, *more)[0] == 0
    logs = ''.join(path.read_text() for path in (tmp_path / 'run').glob('*/*.log'))
    counts = re.findall(r'(\w+)=\S+: \d+ weights matched, 0 missing, 0 unexpected', logs)
    assert sorted(counts) == ['resume', 'teacher_checkpoint', 'teacher_checkpoint']
    assert logs.count('Teacher on the validation set') == 1, 'once, not after a resume'
    assert 'Epoch(train) [2][1/4]' in logs

    (tmp_path / 'teacher.pth').unlink()  # only the student is tested
    tested = tmp_path / 'tested'
    code, _ = tool('test', config, tmp_path / 'run/epoch_2.pth', '--work-dir', tested)
    assert code == 0
    assert 'accuracy/top1' in next(tested.glob('*/*.log')).read_text()


def test_pair_with_a_method(tool, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    model = dict(type='Distiller', teacher=vit(), student=resnet(), input_size=(3, 32, 32))
    fields = runner_config(model, tmp_path / 'of/no/use')
    del fields['work_dir']
    fields.update(test_dataloader=fields['val_dataloader'])
    fields.update(test_evaluator=fields['val_evaluator'], test_cfg={})
    pair = tmp_path / 'pair.py'
    pair.write_text('\n'.join(f'{name} = {value!r}' for name, value in fields.items()))
    for method, parts in {'dkd': {'student'}, 'scratch': {'backbone', 'head'}}.items():
        assert tool('train', pair, '--method', method)[0] == 0
        checkpoint = tmp_path / f'work_dirs/pair_{method}/epoch_1.pth'
        weights = torch.load(checkpoint, weights_only=False)['state_dict']
        assert {key.partition('.')[0] for key in weights} == parts
        assert tool('test', pair, checkpoint, '--method', method)[0] == 0
    code, stderr = tool('train', pair)
    assert (code, stderr.count('\n')) == (2, 1)
    assert 'a pair needs a method; add --method' in stderr


@pytest.mark.parametrize(
    ('option', 'message'),
    [
        ('model.teacher_checkpoint=no.pth', "teacher_checkpoint='no.pth': there is no such file"),
        ('model.teacher.head.num_classes=7', "teacher_checkpoint='"),
        ('model.student.head.num_classes=7', 'the teacher has 10, the student 7'),
        ('model.losses.0.student=logit', "student='logit': unknown tensor"),
        ('model.losses.0.loss.temperature=0', 'temperature=0: must be a positive number'),
        ('model.losses.0.loss.alpha=-1', 'alpha=-1: must be a non-negative number'),
        ('model.student_recorder.taps=steges', "taps='steges': must be 'stages' or a dict"),
        ('train_dataloader.dataset.subset.per_class=999', 'must have 999 or more'),
    ],
)
def test_mistake_is_one_line(config, tool, tmp_path, option, message):
    options = ['model.student_recorder.type=FeatureRecorder', option]
    code, stderr = tool('train', config, '--cfg-options', *options)
    assert code == 2
    line = stderr.strip().splitlines()[-1]
    assert line.startswith('error: ') and message in line
    assert 'Traceback' not in stderr
    assert not (tmp_path / 'run').exists()


def test_label_out_of_range(config, tool):
    """The error occurs during training, since labels come with batches, but is one line, too."""
    text = config.read_text().replace("'num_classes': 10}", "'num_classes': 7}")
    config.write_text(text.replace(str(config.parent / 'teacher.pth'), 'seven.pth'))
    torch.save(MODELS.build(vit(num_classes=7)).state_dict(), 'seven.pth')
    heads = ['model.student.head.num_classes=7', 'model.teacher.head.num_classes=7']
    code, stderr = tool('train', config, '--no-validate', '--cfg-options', *heads)
    assert code == 2
    assert 'must be within 0..6, as the models have 7 classes' in stderr.splitlines()[-1]

"""The model card states the facts in the checkpoint and nothing else."""

import hashlib
import re
import shutil
from pathlib import Path

import pytest
import torch
from helpers import mldr, train
from mmengine.config import Config

from mldr_kd_mm.apis.description import StudentDescription
from mldr_kd_mm.apis.export import export_student, rebuild_student
from mldr_kd_mm.apis.model_card import _accuracy, _augments, _teacher_weights, model_card
from mldr_kd_mm.apis.run_record import RunRecord
from mldr_kd_mm.evaluation.logged_run import ACCURACY, curve, read_records
from mldr_kd_mm.models.builder import build_classifier
from mldr_kd_mm.utils.logging import plural
from mldr_kd_mm.utils.safe_config import parse_config

CONFIGS = Path(__file__).parents[2] / 'configs'
HOOKS = dict(
    checkpoint=dict(type='AtomicCheckpointHook', interval=1, save_best='accuracy/top1'),
    exact_resume=dict(type='ExactResumeHook'),
)


@pytest.fixture(scope='module')
def work_dir(tmp_path_factory):
    """Return the work directory of a run whose second epoch is not better than its first."""
    folder = tmp_path_factory.mktemp('runs') / 'card'
    train(mldr(), folder, max_epochs=2, default_hooks=HOOKS)
    return folder


def card_of(checkpoint, folder) -> dict[str, str]:
    """Return the card's items, name -> text, and the whole card under ''."""
    export_student(str(checkpoint), str(folder / 'student.pth'))
    text = (folder / 'student.md').read_text()
    return dict(re.findall('^- (.+?): (.*)$', text, re.MULTILINE)) | {'': text}


def card_of_config(name, **content) -> tuple[dict[str, str], dict]:
    """Return the card's items for a shipped config, and the metadata of the graphs."""
    run = parse_config(Config.fromfile(CONFIGS / name).pretty_text)
    weights = build_classifier(run['model']['student'].copy()).state_dict()
    student = rebuild_student(run, weights)
    record = RunRecord.from_checkpoint(content)
    text = model_card(record, run, student, {'student.pth': (Path(__file__), 'weights')})
    items = dict(re.findall('^- (.+?): (.*)$', text, re.MULTILINE)) | {'': text}
    return items, StudentDescription.of(record, run, student).to_metadata()


def test_what_a_run_recorded(work_dir, tmp_path):
    card = card_of(work_dir / 'epoch_2.pth', tmp_path)
    content = torch.load(work_dir / 'epoch_2.pth', weights_only=False)
    assert card['Trained for'] == '2 epochs, 8 iterations (configured: 2)'
    assert (card['Batch size'], card['Processes']) == ('10 per process', '1')
    assert card['Optimizer'] == '`SGD(lr=0.01)`'
    assert card['Seed'] == '0'
    assert card['Run'] == content['meta']['experiment_name']
    assert card['Weights'] == 'last step, no EMA'
    assert card['Parameters'] == '176,402'
    heads = "the student's logits, stage_logits, fused_logits and the teacher's logits"
    assert card['`dfra`, weight 1.0'] == f'`DFRALoss` between {heads}'
    assert card['Licence of the data'] == 'unknown; ask the owner of the data'
    assert card['Output'].endswith(': ' + ', '.join(f'`{digit}`' for digit in range(10)))
    recorded = content['meta']['mmengine_version']
    commit = card['Git commit of the working directory'].strip('`')
    version, torch_version = card['Trained with'].removeprefix('mmengine ').split(', torch ')
    assert torch_version == torch.__version__
    assert recorded in (version + commit, f'{version}unknown')
    sha256 = hashlib.sha256((tmp_path / 'student.pth').read_bytes()).hexdigest()
    assert card['`student.pth`'].endswith(f'sha256 `{sha256}`')
    assert str(work_dir) not in card['']


def test_whose_accuracy_it_is(work_dir, tmp_path):
    """mmengine saves the checkpoint of an epoch before its validation, the best one after it."""
    best = next(work_dir.glob('best_*_epoch_*.pth'))
    logged = curve(read_records(work_dir), ACCURACY)
    for name in ('epoch_2', best.stem):
        (tmp_path / name).mkdir()
        card = card_of(work_dir / f'{name}.pth', tmp_path / name)
        history = [logged[1], logged[2]] if name == 'epoch_2' else [logged[1]]
        assert card['accuracy/top1'] == (
            f'last {history[-1]:.2f}, best of {plural(len(history), "validation")} '
            f'{max(history):.2f}'
        )
        assert card['Validated on'] == "`Digits(split='test', subset={'per_class': 3})`"
        assert 'The last validation measured these weights' in card['']


def test_a_checkpoint_without_its_log(work_dir, tmp_path):
    """Also beside the log of another run."""
    other = tmp_path / 'other'
    train(mldr(), other, max_epochs=2, default_hooks=HOOKS)
    for folder in (tmp_path, other):
        shutil.copy(work_dir / 'epoch_2.pth', folder / 'copy.pth')
        (folder / 'out').mkdir()
        card = card_of(folder / 'copy.pth', folder / 'out')
        assert (
            'The last validation was after epoch 1; these weights, of epoch 2, were saved '
            'before their validation' in card['']
        )


INIT = dict(type='Pretrained', checkpoint='my/folder/weights.pth')


@pytest.mark.parametrize(
    ('teacher', 'weights'),
    [
        (dict(type='HuggingFaceClassifier', model_name='a/b', pretrained=True), 'transformers'),
        (dict(type='mmpretrain.HuggingFaceClassifier', pretrained=True), 'transformers'),
        (
            dict(
                type='ModuleClassifier',
                module='mldr_kd_mm.models.backbones.hugging_face:create',
                kwargs=dict(name='a/b', num_classes=3, pretrained=True),
            ),
            'transformers',
        ),
        (
            dict(
                type='ModuleClassifier',
                module='torchvision.models:resnet18',
                kwargs=dict(weights='DEFAULT'),
            ),
            'torchvision',
        ),
        (
            dict(type='ModuleClassifier', module='zoo.nets:a', kwargs=dict(pretrained=True)),
            'zoo',
        ),
        (dict(type='TimmClassifier', model_name='resnet18', pretrained=True), 'timm'),
        (
            dict(type='ImageClassifier', backbone=dict(type='TIMMBackbone', pretrained=True)),
            'timm',
        ),
        (dict(type='ImageClassifier', init_cfg=INIT), '`weights.pth`'),
        (dict(backbone=dict(type='ResNet', init_cfg=[INIT])), '`weights.pth`'),
        (dict(checkpoint_path='my/folder/weights.pth'), '`weights.pth`'),
        (
            dict(type='ImageClassifier', pretrained='torchvision://resnet50'),
            '`torchvision://resnet50`',
        ),
        (dict(type='TimmClassifier', model_name='resnet18'), 'initialised by its config'),
        (
            dict(type='BuiltClassifier', model_name='Net'),
            'those of the module that was passed',
        ),
        ({}, 'not recorded'),
    ],
)
def test_weights_of_a_teacher(teacher, weights):
    if weights in ('timm', 'transformers', 'torchvision', 'zoo'):
        weights = f'pretrained, from {weights}'
    assert _teacher_weights(teacher, None) == weights
    assert _teacher_weights(teacher, 'https://a.b/c/d.pth') == '`d.pth`'


def test_cifar():
    card, images = card_of_config('mldr/deit_to_mobilenet_c100_32px.py')
    assert 'MobileNetV2_CIFAR distilled from VisionTransformer on CIFAR-100\n' in card['']
    assert card["Teacher's weights"] == '`epoch_40.pth`'
    assert card['Input'] == '3 x 32 x 32, RGB'
    assert card['Licence of the data'].startswith('none stated')
    assert card['Trained on'] == "`VerifiedCIFAR100(split='train')`"
    assert images['channel_order'] == '"RGB"'
    assert 'work_dirs' not in card[''] and 'data/cifar100' not in card['']


def test_what_is_not_recorded():
    card, _ = card_of_config('mldr/vit-small_to_resnet18_c100.py')
    assert card['Trained for'].startswith('not recorded epochs, not recorded iterations')
    for name in ('Seed', 'Processes', 'Run', 'Saved', 'Accuracy'):
        assert card[name] == 'not recorded'
    assert card['Trained with'] == 'mmengine not recorded, torch not recorded'


def test_images_that_are_read_as_bgr():
    card, _ = card_of_config('mldr/vit-small_to_resnet18_tinyimagenet_64px.py')
    assert card['Input'] == '3 x 64 x 64, RGB'
    assert 'non-commercial' in card['Licence of the data']
    assert card['Preprocessing'].startswith('`LoadImageFromFile`')


@pytest.mark.parametrize('place', ['run', 'model', 'student'])
def test_batch_augmentation_of_a_data_preprocessor(place):
    mixup = [dict(type='Mixup', alpha=0.8)]
    own = dict(data_preprocessor=dict(batch_augments=dict(augments=mixup)))
    student, model, run = (own if name == place else {} for name in ('student', 'model', 'run'))
    assert _augments(run | dict(model=model | dict(student=student))) == mixup


def test_texts_stay_in_their_lines(work_dir, tmp_path):
    content = torch.load(work_dir / 'epoch_2.pth', weights_only=False)
    content['meta'] |= dict(
        experiment_name='a\n# Not a title\n- Seed: 1`',
        dataset_meta=dict(classes=['x\n# y', '`a, b`']),
    )
    torch.save(content, tmp_path / 'run.pth')
    card = card_of(tmp_path / 'run.pth', tmp_path)
    assert card['Run'] == "a# Not a title- Seed: 1'"
    assert card['Seed'] == '0'
    assert '\n# y' not in card['']
    assert card['Output'].endswith("classes: `x# y`, `'a, b'`")


@pytest.mark.parametrize(('begin', 'is_rounded'), [(2, True), (3, False)])
def test_accuracy_of_rounded_weights(begin, is_rounded):
    hooks = [dict(type='mldr_kd_mm.QuantizationAwareHook', begin=begin)]
    record = RunRecord(epoch='3', validated_epoch='3', metrics={'accuracy/top1': [50.0]})
    *_, line = _accuracy(record, dict(custom_hooks=hooks))
    rounded = ', rounded to INT8 by QuantizationAwareHook' if is_rounded else ''
    assert line == f'The last validation measured these weights{rounded}'

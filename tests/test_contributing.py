"""The examples of CONTRIBUTING.md run, and the files that it names exist."""

import re
from pathlib import Path

import pytest
import yaml
from helpers import batch, mldr, resnet, train, vit
from mmengine.config import Config
from mmengine.runner import Runner

import mldr_kd_mm
from mldr_kd_mm.registry import DATASETS, HOOKS, MODELS

ROOT = Path(__file__).parents[1]
PAGE = (ROOT / 'CONTRIBUTING.md').read_text()
PAGES = [
    'CONTRIBUTING.md',
    'docs/release_checklist.md',
    'examples/downstream_project/README.md',
    '.github/PULL_REQUEST_TEMPLATE.md',
]
LOSS, METHOD, BACKBONE, DATASET, DATA, HOOK = re.findall('```python\n(.*?)```', PAGE, re.DOTALL)
# Files that a contributor writes.
TO_BE_WRITTEN = {
    'configs/_base_/datasets/stripes_32.py',
    'configs/_base_/methods/sp.py',
    'mldr_kd_mm/datasets/stripes.py',
    'mldr_kd_mm/engine/hooks/throughput.py',
    'mldr_kd_mm/models/backbones/plain_cnn.py',
    'mldr_kd_mm/models/losses/sp.py',
    'tests/datasets/test_stripes.py',
    'tests/engine/hooks/test_throughput.py',
    'tests/models/backbones/test_plain_cnn.py',
    'tests/models/losses/test_sp.py',
}


@pytest.fixture
def define():
    """Return a function that runs a code block; its registered classes are removed afterwards."""
    registries = [each for mine in (MODELS, DATASETS, HOOKS) for each in (mine, mine.parent)]
    before = {registry: set(registry.module_dict) for registry in registries}
    yield lambda code: exec(code, {'__name__': 'example'})
    for registry, names in before.items():
        for name in set(registry.module_dict) - names:
            del registry.module_dict[name]


def step(**kwargs):
    """Return the losses of one step of a Distiller."""
    model = MODELS.build(mldr(**kwargs))
    losses = model(**model.data_preprocessor(batch(), True), mode='loss')
    model.parse_losses(losses)[0].backward()
    return model, losses


def test_loss(define, tmp_path):
    define(LOSS)
    (tmp_path / 'sp.py').write_text(METHOD)
    _, losses = step(neck=None, **Config.fromfile(tmp_path / 'sp.py').method)
    assert 0 < losses['loss_sp_feature'] < 1
    assert len(LOSS.splitlines()) <= 25, 'a new loss in twenty lines'


def test_backbone(define):
    define(BACKBONE)
    student = dict(
        type='ImageClassifier',
        backbone=dict(type='PlainCNN'),
        neck=dict(type='GlobalAveragePooling'),
        head=dict(type='LinearClsHead', num_classes=10, in_channels=64),
    )
    model, _ = step(student=student)
    assert model.neck.in_channels == (8, 16, 32, 64)
    assert all(parameter.grad is not None for parameter in model.student.parameters())


def test_data_set(define, tmp_path):
    define(DATASET)
    (tmp_path / 'stripes_32.py').write_text(DATA)
    cfg = Config.fromfile(tmp_path / 'stripes_32.py')
    batches = iter(Runner.build_dataloader(cfg.train_dataloader, seed=0))
    model = MODELS.build(
        mldr(teacher=vit(2), student=resnet(2), data_preprocessor=cfg.data_preprocessor)
    )
    losses = model(**model.data_preprocessor(next(batches), True), mode='loss')
    assert all(loss.isfinite() for loss in losses.values())
    images = DATASETS.build(cfg.val_dataloader.dataset)
    first, second = images[0], images[1]
    assert first['data_samples'].gt_label.tolist() == [0]
    assert (first['inputs'] != second['inputs']).any()


def test_hook(define, tmp_path):
    define(HOOK)
    train(mldr(), tmp_path / 'run', custom_hooks=[dict(type='ThroughputHook')])
    (log,) = tmp_path.glob('run/*/*.log')
    assert re.search(r'Epoch 1: [1-9]\d* images/s', log.read_text())


@pytest.mark.parametrize('page', PAGES)
def test_names_what_exists(page):
    text = re.sub('```python.*?```', '', (ROOT / page).read_text(), flags=re.DOTALL)
    named = re.findall(
        r'(?<![\w/.])(?:tools|tests|docs|configs|requirements|mldr_kd_mm)/[\w./-]*', text
    )
    links = re.findall(r'\]\(([^)#:]+)\)', text)
    folder = (ROOT / page).parent
    for name in set(named) - TO_BE_WRITTEN:
        assert any((start / name.rstrip('.')).exists() for start in (ROOT, folder)), name
    for link in links:
        assert (folder / link).is_file(), link
    assert named or links


def test_citation_and_changelog_state_the_version():
    citation = yaml.safe_load((ROOT / 'CITATION.cff').read_text())
    assert {'cff-version', 'message', 'title', 'authors'} <= set(citation)
    assert citation['version'] == mldr_kd_mm.__version__
    headings = re.findall(r'^## (.*)$', (ROOT / 'CHANGELOG.md').read_text(), re.MULTILINE)
    unreleased, *releases = headings
    assert unreleased == 'Unreleased'
    assert all(re.fullmatch(r'\d+\.\d+\.\d+ \(20\d\d-\d\d-\d\d\)', name) for name in releases)
    assert releases[0].startswith(f'{mldr_kd_mm.__version__} ')
    (paper,) = citation['references']
    assert {'type', 'title', 'authors'} <= set(paper)
    assert paper['url'] in (ROOT / 'README.md').read_text()
    assert ' '.join((ROOT / 'README.md').read_text().split()).count(paper['title']) == 1

"""Small runs to report on."""

import json
import shutil

import pytest
from helpers import mldr, resnet, train, vit


@pytest.fixture(scope='session')
def runs(tmp_path_factory):
    """Train a teacher, a student alone and a distilled student; return their work directories."""
    folder = tmp_path_factory.mktemp('runs')
    preprocessor = dict(mean=[127.0] * 3, std=[64.0] * 3, num_classes=10)
    # The teacher trains a little, so that its logits tell the classes apart.
    optimizer = dict(optim_wrapper=dict(optimizer=dict(type='Adam', lr=3e-3)), max_epochs=6)
    train(vit(data_preprocessor=preprocessor), folder / 'teacher', **optimizer)
    checkpoint = str(folder / 'teacher/epoch_6.pth')
    alone = resnet(data_preprocessor=preprocessor)
    optimizer['max_epochs'] = 2
    train(alone, folder / 'alone', **optimizer)
    train(mldr(teacher_checkpoint=checkpoint), folder / 'mldr', **optimizer)
    return folder


@pytest.fixture
def copy_run(runs, tmp_path):
    """Return a function that copies a run to another name and returns its work directory."""

    def copy(name, to):
        shutil.copytree(runs / name, tmp_path / to)
        return tmp_path / to

    return copy


@pytest.fixture
def logged():
    """Return a function that returns the records that a run logged."""
    return lambda work_dir: [
        json.loads(line)
        for log in sorted(work_dir.glob('*/vis_data/scalars.json'))
        for line in log.read_text().splitlines()
    ]

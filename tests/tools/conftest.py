"""A small classifier on random pictures, to run the tools on."""

import runpy
from pathlib import Path

import numpy as np
import pytest
from mmengine.logging import MMLogger
from PIL import Image

TOOLS = Path(__file__).parents[2] / 'tools'

CONFIG = """
model = dict(
    type='ImageClassifier',
    backbone=dict(type='ResNet_CIFAR', depth=18, base_channels=4, stem_channels=4),
    neck=dict(type='GlobalAveragePooling'),
    head=dict(
        type='LinearClsHead', num_classes=2, in_channels=32, loss=dict(type='CrossEntropyLoss')
    ),
)
data_preprocessor = dict(num_classes=2, mean=[127.0] * 3, std=[127.0] * 3)
train_dataloader = dict(
    batch_size=2,
    num_workers=0,
    sampler=dict(type='DefaultSampler', shuffle=True),
    dataset=dict(
        type='CustomDataset',
        data_root={data_root!r},
        pipeline=[dict(type='LoadImageFromFile'), dict(type='PackInputs')],
    ),
)
val_dataloader = test_dataloader = dict(
    train_dataloader, sampler=dict(type='DefaultSampler', shuffle=False)
)
val_evaluator = test_evaluator = dict(type='Accuracy', topk=1)
train_cfg = dict(by_epoch=True, max_epochs=1)
val_cfg = test_cfg = dict()
optim_wrapper = dict(optimizer=dict(type='SGD', lr=0.01))
default_hooks = dict(logger=dict(type='LoggerHook', interval=1))
default_scope = 'mmpretrain'
randomness = dict(seed=0)
"""


@pytest.fixture
def config(tmp_path, monkeypatch):
    """Write a config whose data set has two classes with four pictures each; return its path.

    The current directory is empty; runs create their ``work_dirs`` in it.
    """
    random = np.random.default_rng(0)
    for name in ('cat', 'dog'):
        folder = tmp_path / 'data' / name
        folder.mkdir(parents=True)
        for number in range(4):
            pixels = random.integers(0, 255, (16, 16, 3), dtype=np.uint8)
            Image.fromarray(pixels).save(folder / f'{number}.png')
    path = tmp_path / 'tiny.py'
    path.write_text(CONFIG.format(data_root=str(tmp_path / 'data')))
    here = tmp_path / 'here'
    here.mkdir()
    monkeypatch.chdir(here)
    return path


@pytest.fixture
def read_tool(monkeypatch):
    """Return a function that imports a tool by name."""
    monkeypatch.syspath_prepend(TOOLS)
    # Tools set it for the whole process; monkeypatch restores it.
    monkeypatch.setenv('LOCAL_RANK', '0')
    return lambda name: runpy.run_path(TOOLS / f'{name}.py')


@pytest.fixture
def tool(read_tool, capfd):
    """Return a function that runs a tool in this process and returns its exit code and stderr."""

    def run_tool(name, *args):
        main = read_tool(name)['main']
        # A new process has no loggers; those of a run that began in the same second have its name.
        MMLogger._instance_dict.clear()
        capfd.readouterr()
        try:
            main([str(arg) for arg in args])
        except SystemExit as end:
            return end.code, capfd.readouterr().err
        return 0, capfd.readouterr().err

    return run_tool

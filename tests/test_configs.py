"""The configs that are shipped: what they build, and the recipes' numbers."""

import re
import shutil
from pathlib import Path

import pytest
import torch
from mmengine.config import Config
from mmengine.optim import build_optim_wrapper
from mmengine.registry import PARAM_SCHEDULERS

from mldr_kd_mm.registry import DATASETS, MODELS

ROOT = Path(__file__).parents[1]
CONFIGS = sorted(
    path.relative_to(ROOT)
    for path in (ROOT / 'configs').rglob('*.py')
    if '_base_' not in path.parts and path.stem not in ('base', 'student')
)
C100 = [path for path in CONFIGS if 'c100' in path.stem]


@pytest.fixture(params=C100, ids=str)
def config(request):
    """A config for CIFAR-100, its teacher with random weights."""
    cfg = Config.fromfile(ROOT / request.param)
    if cfg.model.type == 'Distiller':
        cfg.model.teacher_checkpoint = None
    cfg.model.data_preprocessor = cfg.data_preprocessor
    return cfg


@pytest.mark.parametrize('path', CONFIGS, ids=str)
def test_docstring_has_the_launch_command(path):
    docstring = (ROOT / path).read_text().split('"""')[1]
    assert f'tools/train.py {path}' in docstring or f'tools/dist_train.sh {path}' in docstring


def test_all_are_there():
    names = {'teachers/deit-small', 'scratch/mobilenet', 'mldr/deit_to_mobilenet'}
    expected = {f'configs/{name}_c100{size}.py' for name in names for size in ('', '_32px')}
    assert expected <= {str(path) for path in CONFIGS}


def test_builds_and_steps(config):
    model = MODELS.build(config.model)
    wrapper = build_optim_wrapper(model, config.optim_wrapper)
    size = config.model.get(
        'input_size', (3, 32, 32) if '32px' in config.filename else (3, 224, 224)
    )
    dataset = dict(config.train_dataloader.dataset)
    dataset.update(lazy_init=True)
    pipeline = DATASETS.build(dataset).pipeline
    image = torch.arange(32 * 32 * 3).reshape(32, 32, 3).remainder(256).byte().numpy()
    items = [pipeline(dict(img=image, gt_label=label)) for label in (3, 99)]
    batch = dict(
        inputs=torch.stack([item['inputs'] for item in items]),
        data_samples=[item['data_samples'] for item in items],
    )
    assert batch['inputs'].shape == (2, *size)
    losses = model.train_step(batch, wrapper)
    assert all(value.isfinite() for value in losses.values())


@pytest.mark.parametrize(
    ('schedule', 'lr_at_epoch'),
    [
        ('cnn_300e', {0: 1e-4, 1: 1e-4 + 0.0499 / 3, 3: 0.05, 151: 0.0255, 299: 1e-3}),
        ('cnn_40e', {0: 1e-4, 3: 0.05, 21: 0.0255, 39: 1e-3}),
        ('transformer_300e', {0: 5e-7, 20: 5e-4, 299: 1e-5}),
    ],
)
def test_learning_rate(schedule, lr_at_epoch):
    cfg = Config.fromfile(ROOT / f'configs/_base_/schedules/{schedule}.py')
    wrapper = build_optim_wrapper(torch.nn.Linear(1, 1), cfg.optim_wrapper)
    schedulers = [
        PARAM_SCHEDULERS.build(dict(scheduler, optimizer=wrapper.optimizer))
        for scheduler in cfg.param_scheduler
    ]
    rates = []
    for _ in range(cfg.train_cfg.max_epochs):
        rates.append(wrapper.get_lr()['lr'][0])
        for scheduler in schedulers:
            scheduler.step()
    for epoch, rate in lr_at_epoch.items():
        assert rates[epoch] == pytest.approx(rate, rel=1e-6), epoch


def test_recipe_of_the_cnn_student():
    cfg = Config.fromfile(ROOT / 'configs/mldr/deit_to_mobilenet_c100.py')
    alone = Config.fromfile(ROOT / 'configs/scratch/mobilenet_c100.py')
    shared = (
        'optim_wrapper',
        'param_scheduler',
        'train_dataloader',
        'train_cfg',
        'data_preprocessor',
    )
    assert all(cfg[field] == alone[field] for field in shared)
    assert cfg.model.student == alone.model
    assert cfg.optim_wrapper == dict(
        optimizer=dict(type='SGD', lr=0.05, momentum=0.9, nesterov=True, weight_decay=2e-3)
    )
    assert cfg.train_dataloader.batch_size == 128
    assert cfg.train_cfg.max_epochs == 300
    assert cfg.model.student.head.loss.label_smooth_val == 0.1


def test_config_of_the_readme(tmp_path):
    """It is written into a copy of configs/, beside the bases that it names."""
    shutil.copytree(ROOT / 'configs/_base_', tmp_path / '_base_')
    path = tmp_path / 'mine/convnext_to_resnet.py'
    path.parent.mkdir()
    (block,) = re.findall('```python\n(.*?)```', (ROOT / 'README.md').read_text(), re.DOTALL)
    weights = tmp_path / 'teacher.pth'
    assert 'convnext_tiny_c100.pth' in block
    path.write_text(block.replace('convnext_tiny_c100.pth', str(weights)))

    cfg = Config.fromfile(path)
    torch.save(MODELS.build(cfg.model.teacher).state_dict(), weights)
    model = MODELS.build(dict(cfg.model, data_preprocessor=cfg.data_preprocessor))
    assert model.neck.in_channels == (64, 128, 256, 512)
    assert model.neck.projectors[0]['classifier'].in_features == 768, "the teacher's width"

"""FSDP and DeepSpeed through mmengine's FlexibleRunner, on the CPU over gloo."""

import importlib.util
import os
import subprocess
import sys
from contextlib import suppress
from pathlib import Path

import pytest
import torch
from helpers import mldr, run_ranks, runner_config, vit
from mmengine.config import Config

from mldr_kd_mm.engine.preflight import check_strategy
from mldr_kd_mm.engine.strategies import wrap_student_blocks
from mldr_kd_mm.models.distillers.teacher import Teacher
from mldr_kd_mm.models.taps.recorder import FeatureRecorder
from mldr_kd_mm.utils.errors import ConfigError

ROOT = Path(__file__).parents[2]
on_cpu = pytest.mark.skipif(torch.cuda.is_available(), reason='processes share no GPU over gloo')


def run(*command, **variables):
    """Run a command of this environment to its end; return its output."""
    paths = os.pathsep.join([str(ROOT), str(ROOT / 'tests'), os.environ.get('PYTHONPATH', '')])
    done = subprocess.run(
        list(map(str, command)),
        env=os.environ
        | {'PYTHON': sys.executable, 'PYTHONPATH': paths, 'OMP_NUM_THREADS': '1'}
        | variables,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        timeout=300,
    )
    assert done.returncode == 0, done.stdout
    return done.stdout


def strategy(name):
    """Return the fields that a strategy's base adds to a config."""
    return Config.fromfile(ROOT / f'configs/_base_/strategies/{name}.py').to_dict()


def write_config(folder, name, **fields):
    """Write the config of a small MLDR-KD run."""
    config = runner_config(mldr(), folder / name, **fields)
    path = folder / f'{name}.py'
    Config(config | dict(env_cfg=dict(dist_cfg=dict(backend='nccl')))).dump(path)
    return path


@on_cpu
@pytest.mark.parametrize('student', ['resnet', 'vit', 'timm_resnet'])
def test_fsdp_learns_what_an_unsharded_model_learns(student, tmp_path):
    worker = Path(__file__).with_name('fsdp_worker.py')
    run_ranks(*[[worker, tmp_path / 'store', student, 3000]] * 2)


@on_cpu
@pytest.mark.skipif(torch.__version__ < (2, 7), reason='torch 2.6 cannot save them on a CPU')
@pytest.mark.slow
def test_fsdp_through_the_tools(tmp_path):
    """A resumed run ends like an uninterrupted one with DDP; testing uses no strategy."""
    shared = dict(
        max_epochs=2,
        optim_wrapper=dict(
            # With a large eps, noise in a gradient stays small in the step.
            optimizer=dict(type='AdamW', lr=0.1, weight_decay=0.05, eps=0.01),
            paramwise_cfg=dict(norm_decay_mult=0.0),
        ),
        param_scheduler=dict(type='LinearLR', start_factor=0.5, begin=0, end=2),
    )
    whole = write_config(tmp_path, 'ddp', **shared)
    run('bash', ROOT / 'tools/dist_train.sh', whole, 2)
    fsdp = strategy('fsdp')
    fsdp['strategy']['model_wrapper']['auto_wrap_policy']['min_num_params'] = 3000
    path = write_config(tmp_path, 'fsdp', **shared, **fsdp)
    train = ['bash', ROOT / 'tools/dist_train.sh', path, 2]
    run(*train, '--cfg-options', 'train_cfg.max_epochs=1')
    resumed = run(*train, '--resume')
    assert 'Epoch(train) [2][2/2]' in resumed and 'Epoch(train) [1]' not in resumed
    states = {
        name: torch.load(tmp_path / name / 'epoch_2.pth', weights_only=False)
        for name in ('ddp', 'fsdp')
    }
    ddp, fsdp = (states[name]['state_dict'] for name in ('ddp', 'fsdp'))
    assert list(ddp) == list(fsdp)
    for key, value in ddp.items():
        torch.testing.assert_close(fsdp[key], value, rtol=1e-3, atol=1e-4, msg=key)

    config = Config.fromfile(path)
    config.merge_from_dict(
        {f'test_{field}': config[f'val_{field}'] for field in ('dataloader', 'evaluator', 'cfg')}
    )
    config.dump(path)
    tested = run(sys.executable, ROOT / 'tools/test.py', path, tmp_path / 'fsdp/epoch_2.pth')
    assert 'accuracy/top1' in tested
    student = tmp_path / 'student.pth'
    tool = ROOT / 'tools/model_converters/export_student.py'
    run(sys.executable, tool, tmp_path / 'fsdp/epoch_2.pth', student)
    assert student.is_file()


@on_cpu
@pytest.mark.slow
@pytest.mark.skipif(not importlib.util.find_spec('deepspeed'), reason='needs deepspeed')
def test_deepspeed_through_the_tools(tmp_path):
    optim_wrapper = dict(type='DeepSpeedOptimWrapper', optimizer=dict(type='SGD', lr=0.01))
    path = write_config(
        tmp_path, 'deepspeed', **strategy('deepspeed') | dict(optim_wrapper=optim_wrapper)
    )
    output = run('bash', ROOT / 'tools/dist_train.sh', path, 2, DS_ACCELERATOR='cpu')
    assert 'Epoch(train) [1][2/2]' in output and 'Epoch(val) [1][2/2]' in output
    assert (tmp_path / 'deepspeed/epoch_1.pth/mp_rank_00_model_states.pt').is_file()


@pytest.mark.parametrize('name', ['fsdp', 'deepspeed'])
def test_config_differs_from_its_pair_in_the_strategy(name):
    pair = 'vit-large_to_resnet101_c100'
    sharded = Config.fromfile(ROOT / f'configs/sharded/{pair}_{name}.py').to_dict()
    assert {field: sharded.pop(field) for field in strategy(name)} == strategy(name)
    kind = sharded['optim_wrapper'].pop('type', None)
    assert kind == ('DeepSpeedOptimWrapper' if name == 'deepspeed' else None)
    assert sharded == Config.fromfile(ROOT / f'configs/mldr/{pair}.py').to_dict()


@pytest.mark.parametrize(
    ('fields', 'launcher', 'message'),
    [
        (dict(strategy=dict(type='DDPStrategy')), 'pytorch', "only runner_type='FlexibleRunner'"),
        (dict(strategy=dict(type='Mystery')), 'pytorch', "there is no strategy 'Mystery'"),
        (strategy('fsdp'), 'none', 'StudentFSDPStrategy needs a launcher'),
        (strategy('deepspeed'), 'pytorch', 'deepspeed==0.16.9'),
    ],
)
def test_mistakes(fields, launcher, message, monkeypatch):
    monkeypatch.setattr(importlib.util, 'find_spec', lambda name: None)
    if 'Mystery' in message:
        fields = fields | dict(runner_type='FlexibleRunner')
    with pytest.raises(ConfigError, match=message):
        check_strategy(Config(fields | dict(launcher=launcher)))


def test_units_are_called_not_reached_into():
    model = Teacher(vit(), None, FeatureRecorder()).model
    wraps = dict(recurse=False, nonwrapped_numel=2_000_000)
    assert wrap_student_blocks(model.backbone.layers[0], **wraps)
    for module in (model, model.head, model.backbone.layers):
        assert not wrap_student_blocks(module, **wraps)
        assert wrap_student_blocks(module, recurse=True, nonwrapped_numel=2_000_000)


def test_teacher_follows_the_images():
    """FSDP moves the parameters of the Distiller's own modules, one by one."""
    teacher = Teacher(vit(), None, FeatureRecorder())
    # Tensors on this device have no values, so checking that they are finite fails.
    with suppress(RuntimeError):
        teacher(torch.zeros(1, 3, 32, 32, device='meta'))
    assert {parameter.device.type for parameter in teacher.model.parameters()} == {'meta'}

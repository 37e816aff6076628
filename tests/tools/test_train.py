import json
import os

import pytest
import torch
from mmengine.config import Config
from mmpretrain.models import ImageClassifier
from torch.utils.data import DataLoader

from mldr_kd_mm.engine.launch import use_fused_optimizer
from mldr_kd_mm.engine.preflight import preflight
from mldr_kd_mm.utils.errors import ConfigError, describe

NO_DATA = 'train_dataloader.dataset.data_root=/nowhere'


def one_line(result):
    """Return the message of a tool that ended with one line and exit code 2."""
    code, stderr = result
    assert code == 2
    lines = [line for line in stderr.splitlines() if 'Warning' not in line]
    assert len(lines) == 1, stderr
    return lines[0].removeprefix('error: ')


def test_train_resume_and_test(config, tool, tmp_path):
    def logs():
        """Return all logs: a run that starts in the same second writes to the log before it."""
        return ''.join(path.read_text() for path in tmp_path.rglob('*.log'))

    assert tool('train', config)[0] == 0
    work_dir = tmp_path / 'here/work_dirs/tiny'
    assert (work_dir / 'epoch_1.pth').exists()

    more = 'train_cfg.max_epochs=2'
    assert tool('train', config, '--resume', '--no-validate', '--cfg-options', more)[0] == 0
    assert torch.load(work_dir / 'epoch_2.pth', weights_only=False)['meta']['iter'] == 8

    weights = torch.load(work_dir / 'epoch_2.pth', weights_only=False)['state_dict']
    exported, other = tmp_path / 'student.pth', tmp_path / 'other.pth'
    torch.save({'model': {f'net.{name}': value for name, value in weights.items()}}, exported)
    torch.save({'state_dict': {'conv.weight': torch.ones(1)}}, other)
    scores = []
    for checkpoint in (work_dir / 'epoch_2.pth', exported):
        tested = tmp_path / checkpoint.stem
        assert tool('test', config, checkpoint, '--work-dir', tested)[0] == 0
        assert f'checkpoint={str(checkpoint)!r}: {len(weights)} weights matched' in logs()
        (score,) = tested.glob('*/2*.json')
        scores.append(json.loads(score.read_text())['accuracy/top1'])
    assert scores[0] == scores[1]
    other_std = ['--cfg-options', 'data_preprocessor.std=[9.0,9.0,9.0]']
    code, stderr = tool('test', config, work_dir / 'epoch_2.pth', *other_std)
    assert code == 0
    assert 'std [127, 127, 127], but is tested with mean [127, ' in logs()
    said = one_line(tool('test', config, other))
    assert said.startswith(f'checkpoint={str(other)!r}: 0 weights matched, ')


def test_test_refuses_the_teachers_checkpoint(read_tool, tmp_path):
    check = read_tool('test')['check_is_student']
    check('student.pth', 'teacher.pth')
    check('student.pth', None)
    with pytest.raises(ConfigError, match="checkpoint='./teacher.pth': is model.teacher_check"):
        check('./teacher.pth', 'teacher.pth')


@pytest.mark.parametrize(
    ('args', 'message'),
    [
        (['--cfg-options', 'modl.x=1'], "--cfg-options modl.x: the config has no field 'modl'"),
        (['--cfg-options', 'modl.x=1'], 'did you mean model'),
        (['--cfg-options', 'default_scope.x=1'], '--cfg-options: '),
        (['--cfg-options', 'train_cfg=None'], "the config has no field 'train_cfg'"),
        (['--cfg-options', 'model.type=Mystery'], "model.type: there is no model 'Mystery'"),
        (['--cfg-options', 'model.backbone.wings=2'], 'model.backbone.wings: ResNet_CIFAR takes'),
        (['--cfg-options', 'optim_wrapper.optimizer.type=SDG'], "there is no optimizer 'SDG'"),
        (['--cfg-options', 'optim_wrapper.optimizer.rate=1'], 'optim_wrapper.optimizer.rate: '),
        (['--cfg-options', 'train_dataloader.batchsize=1'], 'did you mean batch_size?'),
        (['--cfg-options', NO_DATA], 'train_dataloader.dataset: '),
        (['--resume', 'lost.pth'], "--resume='lost.pth': there is no such file"),
        (['--auto-scale-lr'], '--auto-scale-lr needs auto_scale_lr=dict(base_batch_size=...)'),
    ],
)
def test_mistake_is_one_line(config, tool, tmp_path, args, message):
    assert message in one_line(tool('train', config, *args))
    assert list((tmp_path / 'here').iterdir()) == []


def test_cfg_options_without_value(config, tool):
    code, stderr = tool('train', config, '--cfg-options', 'work_dir')
    assert code == 2
    assert "--cfg-options takes KEY=VALUE, got 'work_dir'" in stderr.splitlines()[-1]


@pytest.mark.skipif(torch.cuda.is_available(), reason='there is a GPU')
def test_amp_without_gpu(config, tool):
    assert '--amp needs a GPU' in one_line(tool('train', config, '--amp'))


def test_unreadable_config(config, tool):
    assert one_line(tool('train', 'lost.py')) == "config='lost.py': there is no such file"
    config.write_text('model = dict(')
    assert one_line(tool('train', config)).startswith(str(config))


def test_missing_checkpoint(config, tool):
    assert "checkpoint='lost.pth': there is no such file" in one_line(
        tool('test', config, 'lost.pth')
    )


def test_traceback_on_request(config, tool):
    _, stderr = tool('train', config, '--traceback', '--cfg-options', 'model.type=Mystery')
    assert 'Traceback' in stderr
    assert stderr.splitlines()[-1].startswith('error: model.type: there is no')


def fail_while_training(monkeypatch, error):
    """Raise an error in the first training step; the check before the run computes a loss, too."""
    right, calls = ImageClassifier.loss, []

    def loss(self, inputs, data_samples):
        calls.append(self)
        if len(calls) > 1:
            raise error
        return right(self, inputs, data_samples)

    monkeypatch.setattr(ImageClassifier, 'loss', loss)


def test_mistake_found_while_training(config, tool, monkeypatch):
    fail_while_training(monkeypatch, ConfigError('labels must be below 2, got 7'))
    assert one_line(tool('train', config)) == 'labels must be below 2, got 7'


def test_bug_keeps_its_traceback(config, tool, monkeypatch):
    fail_while_training(monkeypatch, RuntimeError('a bug'))
    with pytest.raises(RuntimeError, match='a bug'):
        tool('train', config)


@pytest.fixture
def load(config, read_tool):
    """Return a function that returns the config train.py runs for its arguments."""
    train = read_tool('train')

    def load_config(*args):
        return train['make_config'](train['parse_args']([str(config), *args]))

    return load_config


def test_work_dir(config, load):
    assert load().work_dir == 'work_dirs/tiny'
    assert load('--cfg-options', 'work_dir=from_config').work_dir == 'from_config'
    args = ['--work-dir', 'from_flag', '--cfg-options', 'work_dir=from_config']
    assert load(*args).work_dir == 'from_flag'


def test_flags(load):
    assert load('--resume').resume is True
    assert load('--resume').load_from is None
    assert load('--no-validate').val_dataloader is None
    args = ['--auto-scale-lr', '--cfg-options', 'auto_scale_lr.base_batch_size=64']
    assert load(*args).auto_scale_lr == dict(base_batch_size=64, enable=True)


def test_loader_defaults(load):
    loader = load().train_dataloader
    assert loader.persistent_workers is False
    assert loader.pin_memory is torch.cuda.is_available()
    options = ['train_dataloader.num_workers=2', 'val_dataloader.persistent_workers=True']
    cfg = load('--cfg-options', *options)
    assert cfg.train_dataloader.persistent_workers is True
    assert cfg.val_dataloader.persistent_workers is False


@pytest.mark.parametrize('spelling', ['--local-rank', '--local_rank'])
def test_local_rank(load, monkeypatch, spelling):
    load(f'{spelling}=3')
    assert os.environ['LOCAL_RANK'] == '0', 'the value that torchrun sets takes precedence'
    monkeypatch.delenv('LOCAL_RANK')
    load(f'{spelling}=3')
    assert os.environ['LOCAL_RANK'] == '3'


@pytest.mark.skipif(torch.cuda.is_available(), reason='there is a GPU')
def test_processes_without_gpu(config, load):
    cfg = load('--launcher', 'pytorch')
    assert cfg.env_cfg.dist_cfg.backend == 'gloo'
    assert cfg.model_wrapper_cfg.device_ids is None
    with pytest.raises(ConfigError, match='--launcher slurm needs a GPU'):
        load('--launcher', 'slurm')


def test_preflight_leaves_the_config(config, load):
    cfg = load()
    before = cfg.pretty_text
    preflight(cfg, 'model', 'train_dataloader')
    assert cfg.pretty_text == before


@pytest.mark.parametrize('optimizer', ['SGD', 'Adam', 'AdamW'])
def test_a_gpu_gets_a_fused_optimizer(optimizer):
    cfg = Config(dict(optim_wrapper=dict(optimizer=dict(type=optimizer, lr=0.1))))
    use_fused_optimizer(cfg)
    assert cfg.optim_wrapper.optimizer.fused


@pytest.mark.parametrize(
    'changes',
    [
        dict(optim_wrapper=dict(optimizer=dict(type='RMSprop'))),
        dict(optim_wrapper=dict(optimizer=dict(type='SGD', foreach=True))),
        dict(strategy=dict(type='DeepSpeedStrategy')),
        dict(optim_wrapper=dict(_delete_=True, type='OptimWrapperDict')),
    ],
)
def test_other_optimizers_are_left_alone(changes):
    cfg = Config(dict(optim_wrapper=dict(optimizer=dict(type='SGD', lr=0.1))))
    cfg.merge_from_dict(changes)
    wanted = cfg.to_dict()
    use_fused_optimizer(cfg)
    assert cfg.to_dict() == wanted


def test_a_used_work_directory(config, tool, tmp_path, monkeypatch):
    hook = ['--no-validate', '--cfg-options', 'default_hooks.checkpoint.type=AtomicCheckpointHook']
    longer = [*hook, 'train_cfg.max_epochs=2']
    monkeypatch.setenv('MLDR_KD_LAUNCH', 'a')
    monkeypatch.setenv('TORCHELASTIC_RESTART_COUNT', '0')
    monkeypatch.setenv('SLURM_JOB_ID', '7')
    assert tool('train', config, *hook)[0] == 0
    checkpoint = tmp_path / 'here/work_dirs/tiny/epoch_1.pth'
    before = checkpoint.stat().st_mtime_ns

    # Also if torchrun starts another run again, whose first attempt has saved nothing.
    for count, launch in [('0', 'a'), ('1', 'b')]:
        monkeypatch.setenv('TORCHELASTIC_RESTART_COUNT', count)
        monkeypatch.setenv('MLDR_KD_LAUNCH', launch)
        assert 'has checkpoints of an earlier run' in one_line(tool('train', config, *longer))
        assert checkpoint.stat().st_mtime_ns == before

    # A run that was started again goes on, and deletes nothing.
    monkeypatch.setenv('MLDR_KD_LAUNCH', 'a')
    dump, elsewhere = checkpoint.with_name('tiny.py'), tmp_path / 'elsewhere.py'
    elsewhere.write_text('of another program')
    for variable, link in [
        ('TORCHELASTIC_RESTART_COUNT', os.symlink),
        ('SLURM_RESTART_COUNT', os.link),  # as in a copy by cp --link
    ]:
        dump.unlink()
        link(elsewhere, dump)
        with monkeypatch.context() as patch:
            patch.setenv(variable, '1')
            assert tool('train', config, '--overwrite', *longer)[0] == 0
        (log,) = (path.read_text() for path in sorted(tmp_path.glob('**/*.log'))[-1:])
        assert 'resumed epoch:' in log
        assert checkpoint.stat().st_mtime_ns == before
        assert elsewhere.read_text() == 'of another program'
        assert 'AtomicCheckpointHook' in dump.read_text() and not dump.is_symlink()

    monkeypatch.setenv('TORCHELASTIC_RESTART_COUNT', '0')
    assert tool('train', config, '--overwrite', *hook)[0] == 0
    assert [path.name for path in checkpoint.parent.glob('*.pth')] == ['epoch_1.pth']
    assert checkpoint.stat().st_mtime_ns > before


class Broken:
    """A data set that fails in a data-loader worker."""

    def __len__(self):
        return 4

    def __getitem__(self, index):
        raise ConfigError(f'data_root: image {index} cannot be read')


def test_what_a_worker_meets_is_one_line():
    loader = DataLoader(Broken(), num_workers=1)
    with pytest.raises(ConfigError) as caught:
        next(iter(loader))
    assert describe(caught.value) == 'data_root: image 0 cannot be read'

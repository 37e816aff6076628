"""The project's main job as the README starts it: two processes, 224 px, on the CPU."""

import os
import pickle
import runpy
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from mmengine.config import Config

from mldr_kd_mm.registry import MODELS

ROOT = Path(__file__).parents[2]
SHARED = ROOT.parent / 'shared/data/unpack_cifar100.py'
CONFIG = 'configs/mldr/deit_to_mobilenet_c100.py'


@pytest.fixture(scope='module')
def real_images(tmp_path_factory):
    """Write eight real training images and four test images in CIFAR-100's official layout."""
    if not SHARED.exists():
        pytest.skip(f'{SHARED} is absent: it holds the real CIFAR-100')
    unpack = runpy.run_path(str(SHARED))
    root = tmp_path_factory.mktemp('cifar100')
    folder = root / 'cifar-100-python'
    folder.mkdir()
    images, labels = unpack['read']('test')
    for name, part in (('train', slice(0, 8)), ('test', slice(8, 12))):
        unpack['write'](folder / name, images[part], labels[part])
    (folder / 'meta').write_bytes(pickle.dumps({'fine_label_names': unpack['CLASSES']}))
    return root


@pytest.mark.slow
def test_two_processes_without_a_gpu(real_images, tmp_path):
    teacher = Config.fromfile(ROOT / CONFIG).deit_small
    torch.manual_seed(0)
    torch.save(MODELS.build(teacher).state_dict(), tmp_path / 'teacher.pth')
    data = [
        f'{split}_dataloader.{option}'
        for split in ('train', 'val')
        for option in (
            f'dataset.data_root={real_images}',
            'dataset.verify=False',
            'batch_size=2',
            'num_workers=0',
        )
    ]
    command = ['bash', ROOT / 'tools/dist_train.sh', ROOT / CONFIG, '2']
    command += ['--work-dir', tmp_path / 'run', '--cfg-options', 'train_cfg.max_epochs=1']
    command += [*data, f'model.teacher_checkpoint={tmp_path}/teacher.pth']
    command += ['default_hooks.logger.interval=1']
    environment = {**os.environ, 'PYTHON': sys.executable, 'CUDA_VISIBLE_DEVICES': ''}
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=600)
    assert done.returncode == 0, done.stderr[-3000:]

    (log,) = (path.read_text() for path in (tmp_path / 'run').glob('*/*.log'))
    assert 'weights matched, 0 missing, 0 unexpected' in log
    assert 'Teacher on the validation set: accuracy/top1' in log
    assert 'loss_dfra_fused' in log
    assert "teacher's accuracy" in done.stdout
    assert len(done.stdout.splitlines()) <= 40
    checkpoint = torch.load(tmp_path / 'run/epoch_1.pth', weights_only=False)
    assert {key.split('.')[0] for key in checkpoint['state_dict']} == {'student', 'neck'}
    assert all(value.isfinite().all() for value in checkpoint['state_dict'].values())

"""Checkpoints in mmengine's real Runner: rotation, resume, damaged files and a full disk."""

from __future__ import annotations

import logging
import os
import signal
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from faults.campaign import small_disk
from helpers import NORMALIZATION, resnet, run_ranks, train

from mldr_kd_mm import ConfigError
from mldr_kd_mm.engine.hooks import AtomicCheckpointHook
from mldr_kd_mm.engine.work_dir import lock_work_dir, unlock_work_dir
from mldr_kd_mm.utils.checkpoint import load_checkpoint
from mldr_kd_mm.utils.run_identity import RunIdentity

MODEL = resnet(data_preprocessor=dict(NORMALIZATION))


def hooks(**kwargs):
    checkpoint = dict(type='AtomicCheckpointHook', interval=1) | kwargs
    return dict(checkpoint=checkpoint, exact_resume=dict(type='ExactResumeHook'))


def run(work_dir, max_epochs=3, **kwargs):
    kept = {name: kwargs.pop(name) for name in ('resume', 'load_from') if name in kwargs}
    return train(MODEL, work_dir, max_epochs=max_epochs, default_hooks=hooks(**kwargs), **kept)


def names(work_dir):
    return sorted(path.name for path in Path(work_dir).glob('*.pth*'))


def log(runner):
    return Path(runner.log_dir, f'{runner.timestamp}.log').read_text()


def test_keeps_as_many_as_it_is_told(tmp_path):
    run(tmp_path, max_epochs=4, max_keep_ckpts=2)

    assert names(tmp_path) == ['epoch_3.pth', 'epoch_4.pth']
    assert (tmp_path / 'last_checkpoint').read_text() == str(tmp_path / 'epoch_4.pth')


def test_keeps_the_count_over_a_resume(tmp_path):
    run(tmp_path, max_epochs=2, max_keep_ckpts=2)

    run(tmp_path, max_epochs=4, max_keep_ckpts=2, resume=True)

    assert names(tmp_path) == ['epoch_3.pth', 'epoch_4.pth']


@pytest.mark.parametrize('best', [None, 'accuracy/top1'])
def test_removes_an_old_one_only_when_the_new_one_is_there(tmp_path, monkeypatch, best):
    # Each validation is the best one.
    monkeypatch.setitem(AtomicCheckpointHook.rule_map, 'greater', lambda new, old: True)
    seen = []
    remove = AtomicCheckpointHook._remove

    def spy(hook, path):
        seen.append((names(tmp_path), path))
        remove(hook, path)

    monkeypatch.setattr(AtomicCheckpointHook, '_remove', spy)

    run(tmp_path, max_keep_ckpts=1, save_best=best)

    removed = [Path(path).name for _, path in seen]
    assert removed.count('epoch_1.pth') == removed.count('epoch_2.pth') == 1
    assert ('best_accuracy_top1_epoch_2.pth' in removed) == (best is not None)
    for there, path in seen:
        kind, number = Path(path).stem.rsplit('_', 1)
        assert f'{kind}_{int(number) + 1}.pth' in there
    assert names(tmp_path)[-1] == 'epoch_3.pth'
    assert len(names(tmp_path)) == (2 if best else 1)


def truncate(path):
    os.truncate(path, path.stat().st_size // 2)


def flip_a_byte(path):
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)


@pytest.mark.parametrize('damage', [truncate, flip_a_byte, lambda path: path.unlink()])
def test_goes_on_from_the_newest_whole_one(tmp_path, damage):
    wanted = run(tmp_path).model.state_dict()
    damage(tmp_path / 'epoch_3.pth')

    runner = run(tmp_path, resume=True)

    text = log(runner)
    assert 'resumed epoch: 2, iter: 8' in text
    assert "epoch_3.pth'" in text
    for name, value in runner.model.state_dict().items():
        assert torch.equal(value, wanted[name])


def test_says_so_if_none_is_whole(tmp_path):
    run(tmp_path, max_epochs=2)
    # A run cannot resume from weights alone, such as those of an exported student.
    whole = load_checkpoint(str(tmp_path / 'epoch_2.pth'))
    for path in tmp_path.glob('*.pth'):
        truncate(path)
    torch.save(dict(state_dict=whole['state_dict'], meta={}), tmp_path / 'student.pth')

    with pytest.raises(ConfigError, match='none of the 2 checkpoints of .* can be read'):
        run(tmp_path, resume=True)


@pytest.mark.parametrize('saved_with, says', [('a', False), ('b', True), (None, False)])
def test_says_that_something_else_decides_the_weights(caplog, saved_with, says):
    """As when the file of the teacher was replaced; the config may be the same."""
    hook = AtomicCheckpointHook()
    hook.identity = RunIdentity('0' * 32, 'a')
    hub = dict(log_scalars={}, runtime_info={}, resumed_keys={})
    meta = dict(epoch=1, iter=4, run=dict(fingerprint=saved_with))
    logger = logging.getLogger('checkpoint')
    runner = SimpleNamespace(_resume=True, _load_from='epoch_1.pth', logger=logger)

    hook.after_load_checkpoint(runner, dict(meta=meta, message_hub=hub))

    assert ('epoch_1.pth was saved with other settings' in caplog.text) == says


def test_begins_anew_where_there_is_none(tmp_path):
    runner = run(tmp_path, max_epochs=1, resume=True)

    assert runner.epoch == 1


def test_a_best_one_is_not_gone_on_from(tmp_path):
    run(tmp_path, max_epochs=1, save_best='accuracy/top1')
    truncate(tmp_path / 'epoch_1.pth')

    with pytest.raises(ConfigError, match='none of the 1 checkpoints'):
        run(tmp_path, resume=True)


def test_sweeps_up_what_a_kill_left(tmp_path):
    (tmp_path / 'epoch_9.pth.0123abcd.unfinished').write_text('half a checkpoint')
    (tmp_path / 'last_checkpoint.0123abcd.unfinished').write_text('half a path')
    (tmp_path / 'notes.unfinished').write_text('of another program')

    run(tmp_path, max_epochs=1)

    assert names(tmp_path) == ['epoch_1.pth']
    assert not list(tmp_path.glob('last_checkpoint.*'))
    assert (tmp_path / 'notes.unfinished').exists()


def test_a_second_run_in_the_same_directory_stops(tmp_path):
    (tmp_path / 'epoch_9.pth.0123abcd.unfinished').write_text('being written')
    ours, theirs = os.pipe()
    other = os.fork()
    if other == 0:
        lock_work_dir(str(tmp_path))
        os.write(theirs, b'x')
        signal.pause()
    os.read(ours, 1)
    try:
        with pytest.raises(ConfigError, match=f'process {other} on .* is training here'):
            run(tmp_path, max_epochs=1)
    finally:
        os.kill(other, signal.SIGKILL)
        os.waitpid(other, 0)

    assert names(tmp_path) == ['epoch_9.pth.0123abcd.unfinished']
    run(tmp_path, max_epochs=1)
    assert lock_work_dir(str(tmp_path)) is True  # the run has released it
    unlock_work_dir(str(tmp_path))


def skip_without(disk):
    if disk is None:
        pytest.skip('a file system can only be mounted as root')


@pytest.mark.parametrize('keep', [1, -1])
def test_a_full_disk_leaves_the_checkpoints_before(tmp_path, keep):
    run(tmp_path / 'straight', max_epochs=1)
    size = (tmp_path / 'straight' / 'epoch_1.pth').stat().st_size
    with small_disk(tmp_path / 'disk', int(1.7 * size / 1000)) as disk:
        skip_without(disk)
        checkpoints = dict(out_dir=str(disk), max_keep_ckpts=keep)

        with pytest.raises(ConfigError) as caught:
            run(tmp_path / 'run', **checkpoints)

        line = str(caught.value)
        assert 'No space left on device' in line
        assert f'{disk / "run" / "epoch_1.pth"} is complete' in line
        assert names(disk / 'run') == ['epoch_1.pth']
        assert (tmp_path / 'run' / 'last_checkpoint').read_text().endswith('epoch_1.pth')
        torch.load(disk / 'run' / 'epoch_1.pth', weights_only=False)


def test_a_full_disk_of_the_main_process_ends_the_others(tmp_path):
    with small_disk(tmp_path / 'disk', 100) as disk:
        skip_without(disk)
        worker = Path(__file__).with_name('full_disk_worker.py')
        run_ranks(*((worker, rank, tmp_path, disk) for rank in range(2)), code=2)

    for rank in range(2):
        assert 'No space left on device' in (tmp_path / f'error{rank}').read_text()

"""The files of a run: no other file is removed or written, whatever a checkpoint says."""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path

import pytest
import torch
from helpers import NORMALIZATION, resnet, train

from mldr_kd_mm import ConfigError
from mldr_kd_mm.engine.hooks import AtomicCheckpointHook

MODEL = resnet(data_preprocessor=dict(NORMALIZATION))
CHECKPOINT = dict(
    type='AtomicCheckpointHook', interval=1, max_keep_ckpts=2, save_best='accuracy/top1'
)


@pytest.fixture(autouse=True)
def every_validation_is_the_best(monkeypatch):
    monkeypatch.setitem(AtomicCheckpointHook.rule_map, 'greater', lambda new, old: True)


def run(work_dir, max_epochs, **kwargs):
    hooks = dict(checkpoint=CHECKPOINT, exact_resume=dict(type='ExactResumeHook'))
    return train(MODEL, work_dir, max_epochs=max_epochs, default_hooks=hooks, **kwargs)


def files(folder):
    """Return the content of all files in a folder."""
    return {
        path.relative_to(folder): path.read_bytes() for path in folder.rglob('*') if path.is_file()
    }


def names(work_dir):
    return sorted(path.name for path in work_dir.glob('*.pth'))


def kept(epoch):
    return [f'best_accuracy_top1_epoch_{epoch}.pth', f'epoch_{epoch - 1}.pth', f'epoch_{epoch}.pth']


@pytest.fixture(scope='module')
def original(tmp_path_factory):
    """Return the work directory of a run of two epochs."""
    folder = tmp_path_factory.mktemp('original') / 'run'
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(AtomicCheckpointHook.rule_map, 'greater', lambda new, old: True)
        run(folder, 2)
    assert names(folder) == kept(2)
    return folder


def test_state_has_no_paths(original):
    info = torch.load(original / 'epoch_2.pth', weights_only=False)['message_hub']['runtime_info']
    assert info['last_ckpt'] == 'epoch_2.pth' and info['best_ckpt'] == kept(2)[0]
    assert not [key for key, value in info.items() if key != 'cfg' and str(original) in str(value)]


def test_a_fork_leaves_the_original_alone(original, tmp_path):
    before = files(original)
    folder = tmp_path / 'fork'
    folder.mkdir()
    (folder / 'epoch_2.pth').write_bytes(b'of another program')

    run(folder, 4, resume=True, load_from=str(original / 'epoch_2.pth'))

    assert files(original) == before
    assert names(folder) == sorted([*kept(4), 'epoch_2.pth'])
    ours, theirs = (json.loads((place / 'run.json').read_text()) for place in (folder, original))
    assert ours['parent'] == theirs['id'] != ours['id'] and len(ours['logs']) == 1


def test_a_copied_directory_touches_only_its_own_files(original, tmp_path):
    before = files(original)
    folder = tmp_path / 'copy'
    shutil.copytree(original, folder)

    run(folder, 4, resume=True)

    assert files(original) == before
    assert names(folder) == kept(4)
    assert (folder / 'last_checkpoint').read_text() == str(folder / 'epoch_4.pth')


def change_state(path, **info):
    """Change the message hub of a checkpoint; return the checkpoint."""
    content = torch.load(path, weights_only=False)
    content['message_hub']['runtime_info'].update(info)
    content['message_hub']['resumed_keys'].update(dict.fromkeys(info, True))
    torch.save(content, path)
    return content


@pytest.mark.parametrize('is_fork', [False, True])
@pytest.mark.parametrize(
    'file, folder',
    [('{}/outside/file.pth', '{}/outside'), ('../outside/file.pth', '../outside/'), ('link', '..')],
)
def test_hostile_paths(original, tmp_path, is_fork, file, folder):
    source = tmp_path / 'run'
    shutil.copytree(original, source)
    outside = tmp_path / 'outside'
    outside.mkdir()
    (outside / 'file.pth').write_text('keep')
    (source / 'link').symlink_to(outside / 'file.pth')
    (source / 'student.pth').write_text('keep')
    other = source / 'epoch_0.pth'
    torch.save(dict(meta=dict(epoch=0, iter=0, run=dict(id='b' * 32))), other)
    file, folder = file.format(tmp_path), folder.format(tmp_path)
    canary = tmp_path / 'canary'
    content = change_state(
        source / 'epoch_2.pth',
        interim_ckpt=file,
        last_ckpt=file,
        best_ckpt=folder,
        outdated_ckpts=[file, folder, '', '/', '.', other.name, 'student.pth', 'epoch_1.pth\0'],
        keep_ckpt_ids=[],
    )
    # mmengine would execute this field of old checkpoints.
    content['meta']['config'] = f'__import__("os").mkdir({str(canary)!r})'
    torch.save(content, source / 'epoch_2.pth')
    work_dir = tmp_path / 'fork' if is_fork else source

    run(work_dir, 3, resume=True, load_from=str(source / 'epoch_2.pth') if is_fork else None)

    assert (work_dir / 'epoch_3.pth').is_file()
    assert files(outside) == {Path('file.pth'): b'keep'}
    assert (source / 'student.pth').read_text() == 'keep' and (source / 'link').is_symlink()
    assert other.is_file() and not canary.exists()


def test_a_field_of_a_wrong_type(original, tmp_path):
    path = tmp_path / 'epoch_2.pth'
    shutil.copy(original / 'epoch_2.pth', path)
    change_state(path, keep_ckpt_ids='../..')
    with pytest.raises(ConfigError, match=r'resume=.*: message_hub\.runtime_info\.keep_ckpt_ids='):
        run(tmp_path / 'run', 3, resume=True, load_from=str(path))


@pytest.mark.parametrize('first', ['epoch_1.pth', 'best_accuracy_top1_epoch_2.pth'])
def test_a_kill_before_an_outdated_one_is_removed(original, tmp_path, monkeypatch, first):
    """The resumed run removes it."""
    folder = tmp_path / 'run'
    shutil.copytree(original, folder)
    # Another run's file of the same name as a checkpoint of this run.
    other = 'epoch_0.pth'
    torch.save(dict(meta=dict(epoch=0, iter=0, run=dict(id='b' * 32))), folder / other)
    remove = AtomicCheckpointHook._remove

    def be_killed(hook, path):
        if Path(path).name == first:
            os.stat(folder / 'epoch_3.pth')
            raise KeyboardInterrupt
        remove(hook, path)

    with monkeypatch.context() as patch:
        patch.setattr(AtomicCheckpointHook, '_remove', be_killed)
        with pytest.raises(KeyboardInterrupt):
            run(folder, 4, resume=True)
    assert (folder / first).exists()

    run(folder, 4, resume=True)

    assert names(folder) == sorted([*kept(4), other])


def test_a_link_in_the_place_of_a_checkpoint_is_replaced(original, tmp_path):
    folder = tmp_path / 'run'
    shutil.copytree(original, folder)
    outside = tmp_path / 'outside.pth'
    outside.write_text('keep')
    (folder / 'epoch_3.pth').symlink_to(outside)
    (folder / 'run.json').unlink()
    (folder / 'run.json').symlink_to(outside)

    run(folder, 3, resume=True)

    assert outside.read_text() == 'keep'
    assert not (folder / 'epoch_3.pth').is_symlink() and not (folder / 'run.json').is_symlink()

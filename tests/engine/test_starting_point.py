"""The checkpoint that a run continues from."""

from __future__ import annotations

import logging
import os
import shutil

import pytest
import torch

from mldr_kd_mm import ConfigError
from mldr_kd_mm.engine.starting_point import RunDirectory
from mldr_kd_mm.utils.run_identity import Origin, RunIdentity, new_id

OWN, OTHER = 'a' * 32, 'b' * 32
RUN = RunIdentity(OWN, 'old')


def save(folder, name, run=OWN):
    """Save a checkpoint after as many epochs, of 10 iterations, as its name says."""
    folder.mkdir(exist_ok=True)
    path = folder / name
    kind, number = path.stem.split('_')
    epoch, iteration = divmod(int(number) * (10 if kind == 'epoch' else 1), 10)
    meta = dict(epoch=epoch, iter=epoch * 10 + iteration)
    torch.save(dict(meta=meta | (dict(run=dict(id=run)) if run else {})), path)
    return path


def start(folder, resume=True, load_from=None):
    logger = logging.getLogger('starting_point')
    directory = RunDirectory(str(folder), str(folder), {'.pth'}, logger)
    return directory.find_start('new', resume, load_from and str(load_from), 'part2')


@pytest.fixture
def work_dir(tmp_path):
    """Return a directory with three checkpoints; the newest is the oldest file."""
    folder = tmp_path / 'run'
    for number in (3, 1, 2):
        save(folder, f'epoch_{number}.pth')
    RUN.write(folder)
    (folder / 'last_checkpoint').write_text(str(folder / 'epoch_3.pth'))
    return folder


@pytest.mark.parametrize('other', [False, True])
@pytest.mark.parametrize(
    'content',
    [
        b'',
        b'\0' * 64,
        b'\xff\xfe\x00',
        b'/elsewhere/run/epoch_',
        b'/somewhere/else/model.pth',
        b'../../epoch_9.pth',
        b'epoch_3.pth\nepoch_1.pth',
        b'x' * 100_000,
    ],
)
def test_a_damaged_last_checkpoint(work_dir, content, other):
    (work_dir / 'last_checkpoint').write_bytes(content)
    if other:
        save(work_dir, 'epoch_9.pth', OTHER)

    found = start(work_dir)

    assert found.checkpoint == str(work_dir / 'epoch_3.pth')
    assert found.identity.id == OWN and found.identity.fingerprint == 'new'


@pytest.mark.parametrize('make', [os.mkdir, os.mkfifo, lambda path: path.symlink_to('/dev/zero')])
def test_a_last_checkpoint_that_is_no_file(work_dir, make):
    (work_dir / 'last_checkpoint').unlink()
    make(work_dir / 'last_checkpoint')
    assert start(work_dir).checkpoint == str(work_dir / 'epoch_3.pth')


def test_an_interrupted_epoch(work_dir):
    save(work_dir, 'iter_25.pth')
    assert start(work_dir).checkpoint == str(work_dir / 'epoch_3.pth')
    (work_dir / 'last_checkpoint').write_text('/before/it/was/moved/iter_25.pth')
    assert start(work_dir).checkpoint == str(work_dir / 'iter_25.pth')
    (work_dir / 'last_checkpoint').unlink()
    save(work_dir, 'iter_35.pth')
    assert start(work_dir).checkpoint == str(work_dir / 'iter_35.pth')


def test_damaged_ones_are_skipped_and_others_ignored(work_dir, caplog):
    os.truncate(work_dir / 'epoch_3.pth', 100)
    save(work_dir, 'epoch_4.pth', OTHER)
    save(work_dir, 'epoch_5.pth', None)
    (work_dir / 'epoch_6.pth').mkdir()
    (work_dir / 'epoch_7.pth').symlink_to(save(work_dir.parent / 'elsewhere', 'epoch_7.pth', OTHER))
    save(work_dir, 'best_9.pth')
    torch.save(dict(state_dict={}), work_dir / 'student.pth')
    caplog.set_level(logging.WARNING)

    assert start(work_dir).checkpoint == str(work_dir / 'epoch_2.pth')

    assert "epoch_3.pth'" in caplog.text
    assert 'epoch_5.pth, epoch_6.pth of a run without an id' in caplog.text
    assert f'epoch_4.pth, epoch_7.pth of run {OTHER[:8]}' in caplog.text


def test_only_those_of_another_run(work_dir):
    RunIdentity(new_id(), '').write(work_dir)
    with pytest.raises(
        ConfigError, match=r'no checkpoint of its own run; epoch_1\.pth, .* of run a'
    ):
        start(work_dir)


def test_none_is_whole(work_dir):
    for path in work_dir.glob('*.pth'):
        os.truncate(path, 50)
    with pytest.raises(ConfigError, match='none of the 3 checkpoints of .* can be read'):
        start(work_dir)


def test_none_is_there(tmp_path, work_dir):
    (tmp_path / 'new').mkdir()
    assert start(tmp_path / 'new').checkpoint is None
    for path in work_dir.glob('*.pth'):
        path.unlink()
    with pytest.raises(ConfigError, match='has a last_checkpoint, but no checkpoint'):
        start(work_dir)


@pytest.mark.parametrize('damage', [b'', b'{"id": 1}', None])
def test_without_a_record(work_dir, damage):
    """The checkpoints tell whose they are, if they agree."""
    (work_dir / 'run.json').unlink()
    if damage is not None:
        (work_dir / 'run.json').write_bytes(damage)
    found = start(work_dir)
    assert (found.identity.id, found.checkpoint) == (OWN, str(work_dir / 'epoch_3.pth'))

    save(work_dir, 'epoch_4.pth', OTHER)
    with pytest.raises(ConfigError, match=r'checkpoints of 2 runs: .*; choose one'):
        start(work_dir)
    assert start(work_dir, load_from=work_dir / 'epoch_3.pth').identity.id == OWN


def test_from_before_runs_had_an_id(tmp_path):
    for number in (1, 2):
        save(tmp_path, f'epoch_{number}.pth', None)

    found = start(tmp_path)

    assert found.checkpoint == str(tmp_path / 'epoch_2.pth') and not found.is_fork
    assert found.identity.owns(Origin('', 1, 10))  # so they are removed as others are
    found.identity.write(tmp_path)
    save(tmp_path, 'epoch_3.pth', found.identity.id)
    os.truncate(tmp_path / 'epoch_3.pth', 9)
    assert start(tmp_path).checkpoint == str(tmp_path / 'epoch_2.pth')


class TestNamed:
    def test_of_another_directory(self, tmp_path, work_dir):
        found = start(tmp_path / 'new', load_from=work_dir / 'epoch_2.pth')
        assert found.is_fork and found.checkpoint == str(work_dir / 'epoch_2.pth')
        assert found.identity.parent == OWN != found.identity.id
        assert not found.identity.owns(Origin(OWN, 1, 10))

    def test_of_another_directory_than_the_run_in_this_one(self, tmp_path, work_dir):
        """It would replace the checkpoints there one by one."""
        path = save(tmp_path / 'elsewhere', 'epoch_1.pth', OTHER)
        with pytest.raises(ConfigError, match=r'has checkpoints of another run: epoch_1\.pth, .*;'):
            start(work_dir, load_from=path)

    def test_of_another_run_in_the_same_directory(self, work_dir):
        found = start(work_dir, load_from=save(work_dir, 'epoch_9.pth', OTHER))
        assert found.is_fork and found.identity.parent == OTHER

    def test_the_newest(self, work_dir):
        found = start(work_dir, load_from=work_dir / 'epoch_3.pth')
        assert found.identity.id == OWN and not found.is_fork

    def test_an_earlier_one(self, work_dir):
        """The later ones no longer count, even if the newest of the new run is damaged."""
        found = start(work_dir, load_from=work_dir / 'epoch_2.pth')
        assert not found.is_fork and found.identity.parent == OWN
        assert not found.identity.owns(Origin(OWN, 3, 30))
        found.identity.write(work_dir)
        assert start(work_dir).checkpoint == str(work_dir / 'epoch_2.pth')
        os.truncate(save(work_dir, 'epoch_4.pth', found.identity.id), 9)
        assert start(work_dir).checkpoint == str(work_dir / 'epoch_2.pth')

        again = start(work_dir, load_from=work_dir / 'epoch_1.pth')
        again.identity.write(work_dir)
        assert start(work_dir).checkpoint == str(work_dir / 'epoch_1.pth')

    @pytest.mark.parametrize('content', [dict(state_dict={}), dict(meta={}), dict(meta=1)])
    def test_weights(self, tmp_path, content):
        torch.save(content, tmp_path / 'student.pth')
        with pytest.raises(ConfigError, match='must be a checkpoint of a run'):
            start(tmp_path, load_from=tmp_path / 'student.pth')


class TestRestart:
    """A process that torchrun has started again."""

    @pytest.fixture(autouse=True)
    def restarted(self, monkeypatch):
        monkeypatch.setenv('TORCHELASTIC_RESTART_COUNT', '1')
        monkeypatch.setenv('MLDR_KD_LAUNCH', 'this')

    def record(self, work_dir, launch):
        RunIdentity(OWN, '', launches=(f'torchrun {launch}',)).write(work_dir)

    @pytest.mark.parametrize('resume', [False, True])
    @pytest.mark.parametrize('named', [False, True])
    def test_goes_on_from_its_newest(self, tmp_path, work_dir, resume, named):
        self.record(work_dir, 'this')
        path = save(tmp_path / 'elsewhere', 'epoch_1.pth', OTHER) if named else None
        found = start(work_dir, resume, path)
        assert found.checkpoint == str(work_dir / 'epoch_3.pth') and found.identity.id == OWN

    def test_begins_again_if_it_had_saved_nothing(self, work_dir):
        self.record(work_dir, 'another')
        found = start(work_dir, resume=False)
        assert found.checkpoint is None and found.identity.id != OWN
        earlier = work_dir / 'epoch_1.pth'
        assert start(work_dir, load_from=earlier).checkpoint == str(earlier)

    def test_begins_again_if_all_are_damaged(self, work_dir):
        self.record(work_dir, 'this')
        for path in work_dir.glob('*.pth'):
            os.truncate(path, 50)
        assert start(work_dir, resume=False).checkpoint is None


def test_a_copied_directory(work_dir, tmp_path):
    copied = tmp_path / 'copy'
    shutil.copytree(work_dir, copied)
    found = start(copied)
    assert found.checkpoint == str(copied / 'epoch_3.pth') and found.identity.id == OWN


def test_a_fresh_run_in_a_used_directory(work_dir):
    found = start(work_dir, resume=False)
    assert found.checkpoint is None and found.identity.id != OWN
    assert found.identity.logs == ('part2',)


def test_logs_are_listed_in_the_order_of_their_start(work_dir):
    RunIdentity(OWN, '', logs=('part9', 'part1')).write(work_dir)
    assert start(work_dir).identity.logs == ('part9', 'part1', 'part2')

"""The teacher cache, without a run."""

from __future__ import annotations

import copy
import errno
import json
import os
import shutil

import numpy as np
import pytest
import torch
from mmengine.logging import MMLogger

from mldr_kd_mm import ConfigError
from mldr_kd_mm.models.distillers import teacher_cache
from mldr_kd_mm.models.distillers.teacher_cache import TeacherCache
from mldr_kd_mm.structures.view import View

CPU = torch.device('cpu')
KEY = dict(views=2, samples=6, dtype='fp32', seed=0, mixing=None, teacher=dict(weights='abc'))
OUTPUTS = dict(logits=dict(tap='logits', shape=[3]), stage1=dict(tap='layer1', shape=[4, 2, 2]))


def views(indices, epoch=0):
    return [View(0, epoch, index) for index in indices]


def outputs(count=2, seed=0):
    generator = torch.Generator().manual_seed(seed)
    shapes = {name: output['shape'] for name, output in OUTPUTS.items()}
    return {n: torch.randn(count, *shape, generator=generator) for n, shape in shapes.items()}


class Teaching:
    """Stands in for a teacher: returns fixed outputs and counts its calls."""

    def __init__(self, **kwargs):
        self.outputs = outputs(**kwargs)
        self.calls = 0

    def __call__(self):
        self.calls += 1
        return self.outputs


def assert_equal(one, other):
    assert one.keys() == other.keys()
    for name in one:
        assert torch.equal(one[name], other[name]), name


@pytest.fixture
def cache(tmp_path):
    return TeacherCache(tmp_path / 'cache', KEY, OUTPUTS)


def again(cache, outputs=OUTPUTS, **changed):
    return TeacherCache(cache.folder, {**KEY, **changed}, outputs)


def test_gives_what_the_teacher_gave(cache):
    teaching = Teaching()
    assert_equal(cache(views([4, 1]), CPU, teaching), teaching.outputs)
    assert_equal(cache(views([4, 1]), CPU, teaching), teaching.outputs)
    assert_equal(again(cache)(views([4, 1]), CPU, teaching), teaching.outputs)
    assert teaching.calls == 1
    alone = cache(views([1]), CPU, teaching)
    assert torch.equal(alone['stage1'][0], teaching.outputs['stage1'][1])
    assert teaching.calls == 1


@pytest.mark.parametrize('other', [views([4, 2]), views([4, 1], epoch=1)], ids=str)
def test_runs_where_an_entry_lacks(cache, other):
    cache(views([4, 1]), CPU, Teaching())
    teaching = Teaching(seed=1)
    assert_equal(cache(other, CPU, teaching), teaching.outputs)
    assert teaching.calls == 1


def test_a_run_that_records_sees_what_one_that_reads_will(tmp_path):
    cache = TeacherCache(tmp_path / 'cache', {**KEY, 'dtype': 'fp16'}, OUTPUTS)
    teaching = Teaching()
    recorded = cache(views([4, 1]), CPU, teaching)
    assert_equal(cache(views([4, 1]), CPU, teaching), recorded)
    for name, value in teaching.outputs.items():
        assert recorded[name].dtype == torch.float32
        torch.testing.assert_close(recorded[name], value, rtol=2**-11, atol=1e-6)
    assert teaching.calls == 1


def test_half_precision_of_the_teacher(cache):
    teaching = Teaching()
    teaching.outputs = {name: value.bfloat16() for name, value in teaching.outputs.items()}
    for _ in range(2):
        found = cache(views([0, 1]), CPU, teaching)
        assert_equal(found, {name: value.float() for name, value in teaching.outputs.items()})


@pytest.mark.parametrize('file', ['logits.bin', 'stage1.bin', 'logits.crc'])
def test_changed_bytes_are_computed_again(cache, file):
    teaching = Teaching()
    cache(views([0, 1]), CPU, teaching)
    cache(views([2, 3]), CPU, Teaching(seed=1))
    with open(cache.folder / file, 'r+b') as opened:
        opened.seek(5)
        byte = opened.read(1)[0]
        opened.seek(5)
        opened.write(bytes([byte ^ 1]))
    assert_equal(again(cache)(views([0, 1]), CPU, teaching), teaching.outputs)
    assert teaching.calls == 2
    untouched = Teaching(seed=1)
    assert_equal(cache(views([2, 3]), CPU, untouched), untouched.outputs)
    assert untouched.calls == 0


def test_values_without_their_checksums_do_not_count(cache):
    """A crash between writing values and checksums leaves such a file."""
    with open(cache.folder / 'logits.bin', 'r+b') as file:
        file.write(np.ones((2, 3), np.float32).tobytes())
    assert cache.read(views([0, 1]))['logits'] is None
    teaching = Teaching()
    assert_equal(cache(views([0, 1]), CPU, teaching), teaching.outputs)


@pytest.mark.parametrize('other', [(0, 1), (0, 6)], ids=['sample', 'view'])
def test_swapped_entries_are_computed_again(cache, other):
    """Each still matches its own checksum."""
    teaching = Teaching()
    cache(views([0, 1]), CPU, teaching)
    cache(views([0, 1], epoch=1), CPU, Teaching(seed=1))
    for kind, size in (('bin', 12), ('crc', 4)):
        path = cache.folder / f'logits.{kind}'
        content = bytearray(path.read_bytes())
        one, two = (slice(entry * size, (entry + 1) * size) for entry in other)
        content[one], content[two] = content[two], content[one]
        path.write_bytes(content)
    assert cache.read(views([0]))['logits'] is None
    assert_equal(again(cache)(views([0, 1]), CPU, teaching), teaching.outputs)
    assert teaching.calls == 2


def test_files_of_another_teacher_do_not_count(cache, tmp_path):
    other = TeacherCache(tmp_path / 'other', {**KEY, 'teacher': dict(weights='xyz')}, OUTPUTS)
    other(views([0, 1]), CPU, Teaching(seed=1))
    for name in ('logits.bin', 'logits.crc'):
        (tmp_path / 'other' / name).replace(cache.folder / name)
    teaching = Teaching()
    assert_equal(again(cache)(views([0, 1]), CPU, teaching), teaching.outputs)
    assert teaching.calls == 1


def test_outputs_of_one_shape_do_not_stand_for_each_other(tmp_path):
    two = {name: dict(tap=name, shape=[3]) for name in ('logits', 'feature')}
    cache = TeacherCache(tmp_path / 'cache', KEY, two)
    cache(views([0]), CPU, lambda: {name: torch.randn(1, 3) for name in two})
    for kind in ('bin', 'crc'):
        shutil.copy(cache.folder / f'feature.{kind}', cache.folder / f'logits.{kind}')
    found = again(cache, two).read(views([0]))
    assert found['logits'] is None
    assert found['feature'] is not None


@pytest.mark.parametrize('file', ['logits.bin', 'stage1.crc'])
def test_a_file_that_is_truncated_in_use(cache, file):
    """Reading a file that is mapped into memory would end the process with SIGBUS."""
    cache(views([0, 5]), CPU, Teaching())
    os.truncate(cache.folder / file, 8)
    with pytest.raises(ConfigError, match=f'{file} has been truncated; delete {cache.folder}'):
        cache(views([0, 5]), CPU, Teaching())


@pytest.fixture
def read_only(cache, monkeypatch):
    """Make all files of the cache read-only, also for root."""

    def refuse(path, *_, **__):
        raise OSError(errno.EROFS, os.strerror(errno.EROFS), str(path))

    def open_for_reading(path, mode='r', **kwargs):
        return refuse(path) if set(mode) & set('+xaw') else open(path, mode, **kwargs)

    def make():
        monkeypatch.setattr(teacher_cache, 'open', open_for_reading, raising=False)
        monkeypatch.setattr(teacher_cache, 'lock_file', refuse)

    return make


def test_a_read_only_cache_is_read(cache, read_only, tmp_path):
    log = tmp_path / 'log'
    MMLogger.get_instance(f'reading {tmp_path}', log_file=str(log))
    teaching = Teaching()
    cache(views([0, 1]), CPU, teaching)
    read_only()
    opened = again(cache)
    assert_equal(opened(views([0, 1]), CPU, teaching), teaching.outputs)
    assert teaching.calls == 1
    assert 'cannot be written' not in log.read_text()
    for calls in (2, 3):
        assert_equal(opened(views([2, 3]), CPU, teaching), teaching.outputs)
        assert teaching.calls == calls
    assert log.read_text().count('cannot be written and lacks entries') == 1


def test_a_read_only_cache_lacks_an_output(cache, read_only):
    read_only()
    with pytest.raises(ConfigError, match='cannot be written: Read-only file system'):
        again(cache, dict(OUTPUTS, more=dict(tap='more', shape=[3])))


def test_a_mixed_image_belongs_to_its_batch(tmp_path):
    cache = TeacherCache(tmp_path / 'cache', {**KEY, 'mixing': dict(batch_size=2)}, OUTPUTS)
    cache(views([0, 1]), CPU, Teaching())
    teaching = Teaching(seed=1)
    assert_equal(cache(views([1, 0]), CPU, teaching), teaching.outputs)
    assert teaching.calls == 1


def test_an_image_that_is_mixed_twice_in_a_batch_is_not_stored(tmp_path):
    cache = TeacherCache(tmp_path / 'cache', {**KEY, 'mixing': dict(batch_size=2)}, OUTPUTS)
    for seed in (0, 1):
        teaching = Teaching(seed=seed)
        assert_equal(cache(views([0, 0]), CPU, teaching), teaching.outputs)


@pytest.mark.parametrize(
    ('changed', 'message'),
    [
        (dict(seed=1), 'seed was 0, is 1;'),
        (dict(views=3), 'views was 2, is 3;'),
        (dict(samples=7), 'samples was 6, is 7;'),
        (dict(dtype='fp16'), "dtype was 'fp32', is 'fp16';"),
        (dict(mixing=dict(size=2)), r"mixing was None, is \{'size': 2\};"),
        (dict(teacher=dict(weights='xyz')), "teacher.weights was 'abc', is 'xyz';"),
        (dict(teacher={}), "teacher.weights was 'abc', is not set;"),
        (dict(steps=[1]), r'steps was not set, is \[1\];'),
        (dict(seed=1, views=3), 'views was 2, is 3; seed was 0, is 1;'),
        (dict(text='x' * 99), r"text was not set, is 'x{56}\.\.\.;"),
    ],
)
def test_says_what_differs(cache, changed, message):
    cache(views([0, 1]), CPU, Teaching())
    with pytest.raises(
        ConfigError, match=f'was recorded with other settings: {message} set another'
    ):
        again(cache, **changed)
    assert_equal(again(cache)(views([0, 1]), CPU, Teaching(seed=1)), outputs())


@pytest.mark.parametrize('field', ['tap', 'shape'])
def test_says_which_output_differs(cache, field):
    changed = dict(tap='layer2', shape=[8, 2, 2])[field]
    wanted = copy.deepcopy(OUTPUTS)
    wanted['stage1'][field] = changed
    with pytest.raises(ConfigError, match=rf'other settings: outputs\.stage1\.{field}'):
        again(cache, wanted)


def test_lists_differ_by_their_items(tmp_path):
    TeacherCache(tmp_path / 'cache', {**KEY, 'steps': [dict(size=8), 1]}, OUTPUTS)
    with pytest.raises(ConfigError, match=r'other settings: steps.0.size was 8, is 9;'):
        TeacherCache(tmp_path / 'cache', {**KEY, 'steps': [dict(size=9), 1]}, OUTPUTS)


def test_an_output_more_is_recorded_beside_the_others(tmp_path):
    logits = {'logits': OUTPUTS['logits']}
    first = TeacherCache(tmp_path / 'cache', KEY, logits)
    first(views([0, 1]), CPU, Teaching())
    more = TeacherCache(tmp_path / 'cache', KEY, OUTPUTS)
    teaching = Teaching()
    for _ in range(2):
        assert_equal(more(views([0, 1]), CPU, teaching), teaching.outputs)
    assert teaching.calls == 1
    # A run that needs fewer outputs reads the existing ones.
    fewer = TeacherCache(tmp_path / 'cache', KEY, logits)
    assert torch.equal(fewer(views([0, 1]), CPU, None)['logits'], teaching.outputs['logits'])


def test_sizes_are_said_beforehand(tmp_path):
    log = tmp_path / 'log'
    MMLogger.get_instance(f'sizes of {tmp_path}', log_file=str(log))
    TeacherCache(tmp_path / 'cache', KEY, OUTPUTS)
    # 2 x 6 entries of 3 numbers and a checksum, four bytes each.
    recorded = f'teacher_cache: record logits (3,) in {tmp_path / "cache"}: '
    assert f'{recorded}2 views of 6 samples, 192 B' in log.read_text()
    cache = TeacherCache(tmp_path / 'cache', KEY, OUTPUTS)
    assert recorded.replace('record', 'read', 1) + '2 views of 6 samples, 192 B' in log.read_text()
    sizes = [
        path.stat().st_size for kind in ('bin', 'crc') for path in cache.folder.glob(f'*.{kind}')
    ]
    assert sum(sizes) == 192 + 2 * 6 * 4 * (16 + 1)


def test_a_disk_that_is_too_small(tmp_path):
    key = {**KEY, 'views': 10**12}
    with pytest.raises(ConfigError, match=r"needs 504 TB, the disk has .* left; .* dtype='fp16'"):
        TeacherCache(tmp_path / 'deep' / 'cache', key, OUTPUTS)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize('file', ['logits.bin', 'stage1.crc'])
@pytest.mark.parametrize('damage', ['cut short', 'gone'])
def test_a_file_that_is_not_whole(cache, file, damage):
    path = cache.folder / file
    content = path.read_bytes()
    path.unlink()
    if damage == 'cut short':
        path.write_bytes(content[:-1])
    size = len(content) - 1 if damage == 'cut short' else 0
    with pytest.raises(ConfigError, match=f'{file} has {size} bytes, must have {len(content)}'):
        again(cache)


def fingerprint(outputs, **known):
    return json.dumps(dict(fingerprint=known, outputs=outputs))


@pytest.mark.parametrize(
    'text',
    [
        '',
        '{',
        '[]',
        '{"outputs": {}}',
        '{"fingerprint": 5, "outputs": {}}',
        '{"fingerprint": {}, "outputs": 5}',
        '\xff',
        '[' * 100_000,
        fingerprint({'logits': 5}),
        fingerprint({'logits': {}}),
        fingerprint({'logits': dict(shape=5)}),
        fingerprint({'logits': dict(shape=[-3])}),
        fingerprint({'logits': dict(shape=['3'])}),
        fingerprint({'logits': dict(shape=[True])}),
        fingerprint({'logits': dict(shape=[[3]])}),
        fingerprint({'../logits': dict(shape=[3])}),
        fingerprint({'/etc/passwd': dict(shape=[3])}),
    ],
)
def test_a_fingerprint_that_is_none(cache, text):
    (cache.folder / 'fingerprint.json').write_text(text)
    with pytest.raises(ConfigError, match=r'fingerprint\.json cannot be read .*; delete'):
        again(cache)


@pytest.mark.parametrize('size', [10**6, 10**30])
def test_a_fingerprint_of_larger_files(cache, size):
    """No file of the claimed size is created."""
    stored = dict(OUTPUTS, more=dict(tap='more', shape=[size]))
    (cache.folder / 'fingerprint.json').write_text(fingerprint(stored, **KEY))
    with pytest.raises(ConfigError, match=r'more\.bin has 0 bytes, must have'):
        again(cache)


def test_a_fingerprint_cannot_write_to_the_terminal(cache):
    text = fingerprint(OUTPUTS, **KEY, **{'new\nline\x1b[2J': 'x\n'})
    (cache.folder / 'fingerprint.json').write_text(text)
    with pytest.raises(ConfigError, match='other settings: ') as caught:
        again(cache)
    assert str(caught.value).isprintable()


@pytest.mark.parametrize('file', ['logits.bin', 'logits.crc'])
def test_a_link_is_not_written_through(cache, tmp_path, file):
    """A link in an untrusted cache could point to any file of the right size."""
    precious = tmp_path / 'precious'
    (cache.folder / file).rename(precious)
    (cache.folder / file).symlink_to(precious)
    with pytest.raises(ConfigError, match=rf'{file} is a link, .*; delete {cache.folder}'):
        again(cache)


@pytest.mark.parametrize(
    'file', ['stage1.bin', 'stage1.crc', 'fingerprint.json.unfinished', 'lock']
)
def test_a_link_is_replaced(tmp_path, file):
    folder, precious = tmp_path / 'cache', tmp_path / 'precious'
    TeacherCache(folder, KEY, {'logits': OUTPUTS['logits']})
    precious.write_text('precious')
    (folder / file).unlink(missing_ok=True)
    (folder / file).symlink_to(precious)
    TeacherCache(folder, KEY, OUTPUTS)
    assert precious.read_text() == 'precious'


@pytest.mark.parametrize('file', ['logits.bin', 'notes.txt', '.hidden'])
def test_a_folder_of_something_else(tmp_path, file):
    (tmp_path / file).write_text('precious')
    with pytest.raises(ConfigError) as caught:
        TeacherCache(tmp_path, KEY, OUTPUTS)
    assert str(caught.value) == (
        f"teacher_cache: dir='{tmp_path}': must be a new or empty folder, or a teacher cache; it "
        f'holds {file!r}'
    )
    assert [path.name for path in tmp_path.iterdir()] == [file]
    assert (tmp_path / file).read_text() == 'precious'


def test_an_empty_folder(tmp_path):
    TeacherCache(tmp_path, KEY, OUTPUTS)


def test_files_without_a_fingerprint_count_for_nothing(cache):
    cache(views([0, 1]), CPU, Teaching())
    (cache.folder / 'fingerprint.json').unlink()
    teaching = Teaching(seed=1)
    assert_equal(again(cache, seed=1)(views([0, 1]), CPU, teaching), teaching.outputs)
    assert teaching.calls == 1


def test_fingerprint_is_readable(cache):
    content = json.loads((cache.folder / 'fingerprint.json').read_text())
    assert content == dict(fingerprint=KEY, outputs=OUTPUTS)


def test_values_beyond_half_precision(tmp_path):
    cache = TeacherCache(tmp_path / 'cache', {**KEY, 'dtype': 'fp16'}, OUTPUTS)
    teaching = Teaching()
    teaching.outputs['stage1'][1, 0, 0, 0] = 1e5
    with pytest.raises(
        ConfigError, match="dtype='fp16': must be 'fp32', as stage1 has the value 1e.05"
    ):
        cache(views([0, 1]), CPU, teaching)


def test_images_of_another_size(cache):
    teaching = Teaching()
    teaching.outputs['stage1'] = torch.zeros(2, 4, 3, 3)
    with pytest.raises(ConfigError, match=r'stage1 has shape \(4, 3, 3\), before \(4, 2, 2\)'):
        cache(views([0, 1]), CPU, teaching)


def test_copies_share_it(cache):
    assert copy.deepcopy(cache) is cache


def test_a_zero_is_stored_too(cache):
    teaching = Teaching()
    teaching.outputs = {name: torch.zeros_like(value) for name, value in teaching.outputs.items()}
    for _ in range(2):
        assert_equal(cache(views([0, 1]), CPU, teaching), teaching.outputs)
    assert teaching.calls == 1
    assert np.fromfile(cache.folder / 'logits.crc', np.uint32, 2).all()


@pytest.mark.skipif(not torch.cuda.is_available(), reason='needs a GPU')
def test_on_a_gpu(cache):
    teaching = Teaching()
    teaching.outputs = {name: value.cuda() for name, value in teaching.outputs.items()}
    for _ in range(2):
        found = cache(views([0, 1]), torch.device('cuda'), teaching)
        assert_equal(found, teaching.outputs)
    assert teaching.calls == 1

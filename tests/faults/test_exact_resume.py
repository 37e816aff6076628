"""A run that is stopped anywhere and resumed ends bitwise equal to an uninterrupted one."""

from __future__ import annotations

import pytest
from faults.runs import assert_same, configure, finish, logs, run, start


@pytest.fixture(scope='module')
def straight(tmp_path_factory):
    """Return a function that gives the result of an uninterrupted run by number of processes."""
    known = {}

    def train(processes):
        if processes not in known:
            folder = tmp_path_factory.mktemp(f'straight{processes}')
            known[processes] = run(configure(folder), folder, processes)
        return known[processes]

    return train


@pytest.mark.parametrize(
    'processes, iteration',
    [
        *(pytest.param(1, iteration, marks=pytest.mark.slow) for iteration in (2, 5, 12)),
        (2, 4),
    ],
)
def test_goes_on_inside_of_an_epoch(tmp_path, straight, processes, iteration):
    wanted = straight(processes)
    config = configure(tmp_path)

    stop = dict(signal='SIGTERM', iteration=iteration)
    stopped = run(config, tmp_path, processes, code=143, fault=stop)
    found = run(config | dict(resume=True), tmp_path, processes)

    assert_same(found, wanted)
    for one, first, whole in zip(found, stopped, wanted, strict=True):
        # No batch is read twice or left out, and the hooks see the same batch numbers.
        assert first['batches'] + one['batches'] == whole['batches']
        assert len(first['batches']) == iteration


@pytest.mark.parametrize('processes', [pytest.param(1, marks=pytest.mark.slow), 2])
def test_goes_on_after_a_kill(tmp_path, straight, processes):
    kill = dict(signal='SIGKILL', iteration=9, rank=processes - 1)
    config = configure(tmp_path)

    codes = finish(start(config, tmp_path, processes, kill), tmp_path)

    assert codes[-1] == -9
    assert codes[0] == (-9 if processes == 1 else 1)  # the other process does not wait forever
    assert_same(run(config | dict(resume=True), tmp_path, processes), straight(processes))


def test_a_validation_that_was_cut_off_is_done_again(tmp_path, straight):
    # Everything of epoch 1 is saved except its validation.
    config = configure(tmp_path)
    without = dict(val_dataloader=None, val_evaluator=None, val_cfg=None)
    hooks = {name: dict(hook) for name, hook in config['default_hooks'].items()}
    hooks['checkpoint']['save_best'] = None
    stop = dict(signal='SIGKILL', iteration=6)
    finish(start(config | without | dict(default_hooks=hooks), tmp_path, 1, stop), tmp_path)

    assert_same(run(config | dict(resume=True), tmp_path), straight(1))

    assert 'running the interrupted validation of epoch 1' in logs(tmp_path)


@pytest.mark.slow
def test_stops_after_a_step_of_the_optimizer(tmp_path):
    config = configure(tmp_path)
    config['optim_wrapper']['accumulative_counts'] = 3
    wanted = run(config, tmp_path / 'straight')
    stop = dict(signal='SIGTERM', iteration=7)

    (stopped,) = run(config, tmp_path / 'run', code=143, fault=stop)
    found = run(config | dict(resume=True, work_dir=config['work_dir']), tmp_path / 'run')

    assert len(stopped['batches']) == 9
    assert_same(found, wanted)


@pytest.mark.slow
@pytest.mark.parametrize('before, after', [(2, 1), (1, 2)])
def test_another_number_of_processes_goes_on_at_the_same_sample(tmp_path, before, after):
    config = configure(tmp_path)
    config['train_dataloader']['batch_size'] = 4
    stop = dict(signal='SIGTERM', iteration=5 * 2 // before + 2)

    first = run(config, tmp_path, before, code=143, fault=stop)
    rest = run(config | dict(resume=True), tmp_path, after)

    assert 'at the same sample, but not bit for bit' in logs(tmp_path)
    seen = [
        index
        for one in [*first, *rest]
        for epoch, _, indices in one['batches']
        for index in indices
        if epoch == 1
    ]
    assert set(seen) == set(range(40))
    assert len(seen) <= 40 + 4 * max(before, after)  # a step of two processes is repeated
    last = [batch for batch in rest[0]['batches'] if batch[0] == 2]
    assert len(last) == 10 // after
    # The schedules count iterations: they end where those of an uninterrupted run end.
    (straight, *_) = run(config, tmp_path / 'straight', after)
    (rate,) = {group['lr'] for group in rest[0]['optimizer']['param_groups']}
    (wanted,) = {group['lr'] for group in straight['optimizer']['param_groups']}
    assert rate == pytest.approx(wanted)


def test_with_another_sampler_the_epoch_begins_anew(tmp_path):
    config = configure(tmp_path)
    config['train_dataloader']['sampler'] = dict(type='DefaultSampler', shuffle=True)
    config['custom_hooks'] = []
    stop = dict(signal='SIGTERM', iteration=7)

    run(config, tmp_path, code=143, fault=stop)
    run(config | dict(resume=True), tmp_path)

    assert 'epoch 2 restarts; to continue after its 2 iterations' in logs(tmp_path)
    assert (tmp_path / 'epoch_3.pth').exists()


@pytest.mark.slow
def test_a_loop_over_iterations_goes_on_exactly(tmp_path):
    config = configure(
        tmp_path,
        train_cfg=dict(by_epoch=False, max_iters=12, val_interval=6),
        param_scheduler=dict(type='CosineAnnealingLR', by_epoch=False, T_max=12),
    )
    config['default_hooks'] = config['default_hooks'] | dict(
        checkpoint=dict(type='AtomicCheckpointHook', by_epoch=False, interval=5)
    )
    wanted = run(config, tmp_path / 'straight')

    run(config, tmp_path / 'run', code=143, fault=dict(signal='SIGTERM', iteration=8))
    found = run(config | dict(resume=True), tmp_path / 'run')

    assert_same(found, wanted)

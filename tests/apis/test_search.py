"""Searches: their spaces, held-out parts, shared studies and killed processes."""

import json
import os
import re
import shutil
import signal
import sqlite3
import sys
import time
import traceback
from pathlib import Path
from pprint import pformat

import helpers
import pytest
import torch
from mmengine.config import Config
from mmengine.runner import Runner

from mldr_kd_mm.apis import configs
from mldr_kd_mm.cli import main
from mldr_kd_mm.engine import processes
from mldr_kd_mm.models.distillers.teacher_cache import TeacherCache
from mldr_kd_mm.registry import DATASETS
from mldr_kd_mm.structures.view import View
from mldr_kd_mm.utils.errors import ConfigError

optuna = pytest.importorskip('optuna', reason='needs Optuna')
pytest.importorskip('sklearn', reason='needs scikit-learn')

from mldr_kd_mm.apis import search as module  # noqa: E402
from mldr_kd_mm.apis import search_report, study  # noqa: E402
from mldr_kd_mm.apis.search import hold_out, search, share_teacher_outputs  # noqa: E402
from mldr_kd_mm.apis.search_space import (  # noqa: E402
    LEARNING_RATE,
    make_space,
    own_values,
    set_fields,
)

draw = search_report._draw
PAIR = 'vit_to_resnet18_cifar100-20cls'
KD = dict(losses=[dict(loss=dict(type='KDLoss', temperature=1.0), weight=1.0, name='kd')])
WEIGHT = 'model.losses.0.weight'
SPACE = {
    WEIGHT: dict(low=0.1, high=10.0, log=True),
    'optim_wrapper.optimizer.type': dict(choices=['SGD', 'AdamW']),
}


def pair_config(epochs=3, **kwargs):
    """Return a pair on 40 digits, without a work directory."""
    model = dict(type='Distiller', teacher=helpers.vit(), student=helpers.resnet())
    config = helpers.runner_config(model, Path('of/no/use'), max_epochs=epochs, **kwargs)
    del config['work_dir'], config['experiment_name']
    config['train_dataloader']['sampler'] = dict(type='ViewSampler', shuffle=True)
    return config | {'data_preprocessor': helpers.NORMALIZATION}


def put(path, **fields):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text('\n'.join(f'{name} = {pformat(value)}' for name, value in fields.items()))


# Spaces


@pytest.fixture(scope='module')
def pair():
    return configs.read_config(configs.find_configs(configs.PAIRS)[PAIR])


@pytest.mark.parametrize('method', ['scratch', *configs.find_configs(configs.METHODS)])
def test_space_of_a_method_names_its_fields(pair, method):
    """The first trial has all values of the config, and each value can be set."""
    cfg = configs.compose(pair, method)
    space = make_space(configs.read_search_space(method, pair), cfg, method)
    start = own_values(cfg, space, method)
    assert start.keys() == space.keys() and start[LEARNING_RATE] == 0.02
    assert method == 'scratch' or len(space) > 1
    low = {field: limits.low for field, limits in space.items()}
    eta_min = cfg.param_scheduler[1].eta_min
    set_fields(cfg, low, method)
    assert own_values(cfg, space, method) == low
    assert cfg.param_scheduler[1].eta_min == pytest.approx(eta_min / 4)
    assert 'search_space' not in cfg


@pytest.mark.parametrize(
    ('space', 'message'),
    [
        (
            {'model.losses.0.wieght': dict(low=1.0, high=2.0)},
            "method='kd': search_space names model.losses.0.wieght, but its config has no "
            'model.losses.0.wieght; did you mean weight?',
        ),
        (
            {'model.losses.3.weight': dict(low=1.0, high=2.0)},
            "method='kd': search_space names model.losses.3.weight, but its config has no "
            'model.losses.3',
        ),
        (
            {'train_dataloader.dataset.subset.per_class': dict(low=5, high=50)},
            "method='kd': search_space names train_dataloader.dataset.subset.per_class, but the "
            'trials of a search share their data',
        ),
        (
            {WEIGHT: [1, 2]},
            f"method='kd': search_space {WEIGHT}=[1, 2]: must be dict(low=, high=) or "
            'dict(choices=[])',
        ),
        (
            {WEIGHT: dict(low=2.0, high=1.0)},
            f"method='kd': search_space {WEIGHT}: ",
        ),
        (
            {'optim_wrapper.optimizer.betas': dict(choices=[(0.9, 0.999), (0.9, 0.95)])},
            "method='kd': search_space optim_wrapper.optimizer.betas: choices=[(0.9, 0.999), "
            '(0.9, 0.95)]: must be numbers, strings or True, False',
        ),
        (
            {'optim_wrapper.optimizer.betas.1': dict(low=0.9, high=0.999)},
            "method='kd': search_space names optim_wrapper.optimizer.betas.1, but the config has a "
            'tuple there; write it as a list',
        ),
    ],
)
def test_mistake_in_a_space_is_one_line(pair, space, message):
    cfg = configs.compose(pair, KD)
    cfg.optim_wrapper.optimizer.betas = (0.9, 0.999)
    with pytest.raises(ConfigError) as caught:
        make_space(space, cfg, 'kd')
    assert str(caught.value).startswith(message) and '\n' not in str(caught.value)


# Trials


def test_trial_sees_neither_the_test_set_nor_what_is_held_out(tmp_path):
    """Two runs of mmengine's Runner: the first records the teacher's outputs, the second reads."""
    cfg = Config(pair_config(epochs=1))
    cfg.test_dataloader, cfg.test_cfg, cfg.test_evaluator = cfg.val_dataloader, {}, []
    cfg = configs.compose(cfg, KD)
    hold_out(cfg, 0.25, seed=0)
    share_teacher_outputs(cfg, tmp_path / 'cache')
    assert not {'test_dataloader', 'test_cfg', 'test_evaluator'} & set(cfg)
    assert cfg.train_dataloader.sampler.views == 1
    ran = []
    for name in ('first', 'second'):
        run = Config(cfg.to_dict() | dict(work_dir=str(tmp_path / name), experiment_name=name))
        runner = Runner.from_cfg(run)
        train, val = (loader['dataset'] for loader in (run.train_dataloader, run.val_dataloader))
        assert (train.type, val.type, val.held_out) == (*['mldr_kd_mm.HeldOutPart'] * 2, True)
        runner.model.teacher.model.register_forward_hook(lambda *_: ran.append(1))
        runner.train()
        assert [len(loop.dataloader.dataset) for loop in (runner.train_loop, runner.val_loop)] == [
            30,
            10,
        ]
        images = [
            {loop.dataloader.dataset[i]['inputs'].numpy().tobytes() for i in range(number)}
            for loop, number in ((runner.train_loop, 30), (runner.val_loop, 10))
        ]
        assert not images[0] & images[1]
        ran.append(name)
    # Once to find the shapes, and once for each of the three batches that nobody has recorded.
    assert ran == [1] * 4 + ['first', 1, 'second']


def test_labelled_images_of_knn_are_not_held_out():
    """The neighbours of a held-out image are others, prepared for validation."""
    cfg = configs.compose(Config(pair_config()), 'embed')
    hold_out(cfg, 0.25, seed=0)
    bank, held_out = (
        DATASETS.build(loader.dataset)
        for loader in (cfg.val_cfg.bank_dataloader, cfg.val_dataloader)
    )
    assert len(bank) == 30 and len(held_out) == 10
    shown = [{each['inputs'].numpy().tobytes() for each in part} for part in (bank, held_out)]
    assert not shown[0] & shown[1]


def test_held_out_images_are_prepared_as_those_of_joined_validation_sets():
    cfg = Config(pair_config())
    validation = cfg.val_dataloader.dataset
    validation.pipeline = [dict(type='CenterCrop', crop_size=8), *validation.pipeline]
    cfg.val_dataloader.dataset = dict(type='ConcatDataset', datasets=[validation])
    hold_out(cfg, 0.25, seed=0)
    assert DATASETS.build(cfg.val_dataloader.dataset)[0]['inputs'].shape[-2:] == (8, 8)
    cfg = Config(pair_config())
    del cfg.val_dataloader.dataset.pipeline
    with pytest.raises(ConfigError, match='val_dataloader.dataset: must have a pipeline, which'):
        hold_out(cfg, 0.25, seed=0)


def test_data_without_a_dataset_cannot_be_held_out():
    with pytest.raises(ConfigError, match='val_dataloader: must have a dataset, for a part'):
        hold_out(Config(dict(train_dataloader=dict(dataset=dict(type='a')))), 0.1, 0)


def test_two_processes_fill_one_teacher_cache(tmp_path):
    """Each reads what the other has recorded, and a third process needs no teacher."""
    outputs = dict(logits=dict(tap='logits', shape=[10]))
    device, ran = torch.device('cpu'), []

    def fill(starts):
        settings = dict(views=2, samples=64, dtype='fp32', mixing=None)
        cache = TeacherCache(tmp_path / 'cache', settings, outputs)
        for epoch in range(2):
            for begin in starts:
                views = [View(0, epoch, index) for index in range(begin, begin + 8)]
                values = torch.tensor([[100.0 * epoch + view.index] * 10 for view in views])
                found = cache(views, device, lambda v=values: ran.append(1) or dict(logits=v))
                assert torch.equal(found['logits'], values)

    children = []
    for starts in (range(0, 64, 8), range(56, -1, -8)):
        child = os.fork()
        if child == 0:
            code = 1
            try:
                fill(starts)
                code = 0
            finally:
                os._exit(code)
        children.append(child)
    assert [os.waitpid(child, 0)[1] for child in children] == [0, 0]
    fill(range(0, 64, 8))
    assert not ran


# Searches. A stub stands for tools/train.py: it logs an accuracy that depends on the weight.

STUB = """
import json, os, re, signal, sys, time
config, work_dir = sys.argv[1], sys.argv[sys.argv.index('--work-dir') + 1]
weight = re.search("'weight': ([0-9.]+)", open(config).read())
peak = 50 + (float(weight[1]) if weight else 0)
signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
begin = 0
if '--resume' in sys.argv:
    begin = int(re.search(r'epoch_(\\d+)', sys.argv[sys.argv.index('--resume') + 1])[1])
log = f'{work_dir}/20260101_{begin:06d}/vis_data/scalars.json'
os.makedirs(os.path.dirname(log), exist_ok=True)
open(f'{os.path.dirname(log)}/config.py', 'w').close()
for epoch in range(begin + 1, 4):
    open(f'{work_dir}/epoch_{epoch}.pth', 'w').close()
    time.sleep(WAIT)
    with open(log, 'a') as file:
        file.write(json.dumps({'accuracy/top1': peak * epoch / 3, 'step': epoch}) + chr(10))
    if os.path.exists('slow'):
        time.sleep(60)
"""


@pytest.fixture
def project(tmp_path, monkeypatch):
    """Change to a directory with a pair, a method and a stub of tools/train.py."""
    monkeypatch.chdir(tmp_path)
    put(tmp_path / 'configs/pairs/digits.py', **pair_config())
    put(tmp_path / 'configs/_base_/methods/kd.py', method=KD, search_space=SPACE)
    (tmp_path / 'train.py').write_text(STUB.replace('WAIT', '0.05'))
    monkeypatch.setattr(processes, 'TRAIN', tmp_path / 'train.py')
    monkeypatch.setattr(processes, 'PAUSE', 0.05)
    monkeypatch.setattr(search_report, '_draw', lambda *args: [])
    monkeypatch.setattr(study, 'describe_environment', dict)
    monkeypatch.setattr(study, 'HEARTBEAT', 1)
    monkeypatch.setattr(study, 'GRACE', 2)
    return tmp_path


def run(**kwargs):
    """Search with small defaults."""
    options = dict(pair='digits', methods=['kd'], trials=4, pruner='none', held_out=0.25, jobs=1)
    return search(**options | kwargs)


def start(**kwargs):
    """Run a search in a forked process; return its id."""
    child = os.fork()
    if child:
        return child
    code = 70
    try:
        sys.stdout = sys.stderr = open(f'output_{os.getpid()}', 'w')  # noqa: SIM115
        code = len(run(**kwargs))
    except BaseException:
        traceback.print_exc()
    finally:
        sys.stdout.flush()
        os._exit(code)


def wait(child):
    """Return the exit code of a process."""
    code = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    assert code == 0, Path(f'output_{child}').read_text()


def trials(method='kd', storage='sqlite:///work_dirs/search/digits/study.db'):
    return optuna.load_study(study_name=f'digits/{method}', storage=storage).trials


def states(found):
    return [trial.state.name for trial in found]


def test_two_processes_share_a_study(project):
    """Each trial ends once, in one of them, and both see the same end."""
    children = [start(methods=['scratch', 'kd'], trials=3) for _ in range(2)]
    for child in children:
        wait(child)
    seen = [Path(f'output_{child}').read_text() for child in children]
    for method in ('scratch', 'kd'):
        found = [t for t in trials(method) if t.state.name != 'WAITING']
        assert states(found) == ['COMPLETE'] * 3
        for trial in found:
            lines = [text.count(f'{method} trial {trial.number}: 3 epochs') for text in seen]
            assert sorted(lines) == [0, 1], 'one of them has trained it'
        assert len({trial.params[LEARNING_RATE] for trial in found}) == 3
    root = Path('work_dirs/search/digits')
    best = max(trials(), key=lambda trial: trial.value or 0)
    config = Config.fromfile(root / 'best/kd.py')
    assert config.model.losses[0].weight == best.params[WEIGHT]
    assert config.optim_wrapper.optimizer.lr == best.params[LEARNING_RATE]
    # It trains on the whole training set and is tested as the pair says.
    assert config.train_dataloader.dataset.type == 'mldr_kd_mm.Digits'
    assert config.val_dataloader.dataset.split == 'test'
    assert 'search_space' not in config
    text = (root / 'search.md').read_text()
    assert f'| kd | {best.value:.2f} | 51.00 | 3 | 0 | 0 | `best/kd.py` |\n' in text
    assert re.search(
        rf'^- kd: `{LEARNING_RATE}` [\d.e-]+, `{WEIGHT}` [\d.]+, `', text, re.MULTILINE
    )
    assert not list(root.rglob('*.pth')), 'checkpoints of ended trials are removed'


def test_a_killed_process_loses_nothing(project):
    """kill -9: its run saves and ends, and another process resumes its trial, once."""
    (project / 'slow').touch()
    child = start(trials=2)
    log = Path('work_dirs/search/digits/trials/kd')
    deadline = time.monotonic() + 60
    while not any('step' in path.read_text() for path in log.rglob('scalars.json')):
        assert time.monotonic() < deadline
        time.sleep(0.05)
    os.kill(child, signal.SIGKILL)
    os.waitpid(child, 0)
    (project / 'slow').unlink()
    assert run(trials=2) == []
    found = trials()
    assert sorted(states(found)) == ['COMPLETE', 'COMPLETE', 'FAIL']
    lost = next(trial for trial in found if trial.state.name == 'FAIL')
    again = found[-1]
    assert again.system_attrs['failed_trial'] == lost.number and again.params == lost.params
    (place,) = log.glob(f'{lost.number:03d}-*')
    steps = [
        json.loads(line)['step'] for f in sorted(place.rglob('scalars.json')) for line in f.open()
    ]
    assert steps == [1, 2, 3], 'it continued'


def test_worse_trials_are_pruned(project, monkeypatch):
    monkeypatch.setattr(search_report, '_draw', draw)
    (project / 'train.py').write_text(STUB.replace('WAIT', '0.2'))
    assert run(trials=5, pruner='halving', sampler='random') == []
    found = trials()
    pruned = [trial for trial in found if trial.state.name == 'PRUNED']
    assert pruned and {*states(found)} == {'COMPLETE', 'PRUNED'}
    best = max(found, key=lambda trial: trial.params[WEIGHT])
    assert best.state.name == 'COMPLETE'
    pictures = Path('work_dirs/search/digits/plots').glob('*.png')
    names = {'kd_history.png', 'kd_epochs.png', 'kd_importance.png'}
    assert {path.name for path in pictures} == names


def test_a_run_that_is_killed_is_retried_once(project, capsys):
    killed = STUB.replace('WAIT', '0') + '\nos.kill(os.getpid(), 9)\n'
    (project / 'train.py').write_text(killed)
    assert run(trials=1) == ['kd: no trial was completed, see work_dirs/search/digits/trials/kd']
    assert states(trials()) == ['FAIL', 'FAIL']
    root = Path('work_dirs/search/digits')
    assert capsys.readouterr().out.endswith(f'written: {root}/search.md\n')
    assert not (root / 'best').exists()


def test_a_trial_that_diverges_does_not_end_the_search(project):
    """It ends with code 2 before its first epoch does."""
    diverges = """
if not os.path.exists('diverged'):
    open('diverged', 'w').close()
    with open(log, 'a') as file:
        file.write(json.dumps({'skipped_steps': 10, 'step': 10}) + chr(10))
    raise SystemExit(2)
"""
    place = STUB.index('for epoch in')
    stub = f'{STUB[:place]}{diverges}{STUB[place:]}'
    (project / 'train.py').write_text(stub.replace('WAIT', '0'))
    assert run(trials=2) == []
    assert states(trials()) == ['FAIL', 'COMPLETE']
    best = Path('work_dirs/search/digits/best/kd.py').read_text()
    assert best.startswith('"""The best of 1 trial: number 1,')


def test_start_of_a_search_whose_first_trial_was_killed(project):
    killed = """
if not os.path.exists('killed'):
    open('killed', 'w').close()
    os.kill(os.getpid(), 9)
"""
    (project / 'train.py').write_text(f'{STUB}{killed}'.replace('WAIT', '0'))
    assert run(trials=1) == []
    text = Path('work_dirs/search/digits/search.md').read_text()
    assert '| kd | 51.00 | 51.00 | 1 | 0 | 1 |' in text


def test_final_runs_are_validated_on_the_same_images(project):
    """The trials do not see the validation set of the final runs."""
    assert run(trials=1, seeds=1) == []
    place = 'work_dirs/search/digits/final/digits/kd/seed0'
    with pytest.raises(ConfigError) as caught:
        run(
            trials=1,
            seeds=1,
            methods=['scratch'],
            cfg_options={'val_dataloader.dataset.subset.per_class': 2},
        )
    assert str(caught.value).startswith(
        'val_dataloader.dataset.subset.per_class is 2 in the next runs, and 3 in the stored run '
        f'{place}, but'
    )
    # Tuned values differ between methods.
    assert run(trials=3, seeds=1, methods=['scratch']) == []


def test_final_runs_of_a_lost_study(project):
    assert run(trials=1, seeds=1) == []
    root = Path('work_dirs/search/digits')
    (root / 'study.db').unlink()
    with pytest.raises(ConfigError, match='kd/seed0: is a run of a method that the study does not'):
        run(trials=1, seeds=1, methods=['scratch'])
    assert not (root / 'trials/scratch').exists(), 'found before the trials'


def test_bank_of_a_loss_has_the_images_of_the_run(project, monkeypatch):
    tasks = []
    monkeypatch.setattr(module, 'train_all', lambda queue, *_: tasks.extend(queue._tasks))
    run(methods=['crd'])
    of_trial, of_final = (
        config.model.losses[0].loss for config in (tasks[0].plan.config, tasks[0].plan.full)
    )
    assert (of_trial.num_samples, of_trial.negatives) == (30, 29)
    assert (of_final.num_samples, of_final.negatives) == (40, 39)


def test_final_runs_have_seeds_and_a_table(project):
    assert run(trials=1, seeds=2, methods=['kd', 'scratch'], command='mldr-kd tune') == []
    text = Path('work_dirs/search/digits/final/results.md').read_text()
    assert '| scratch | 50.00 ± 0.00 | 50.00 ± 0.00 |  | -' in text
    assert '    mldr-kd tune\n' in text and '- seeds: 0, 1\n' in text


def test_files_of_the_user_and_rows_of_other_methods_are_kept(project, capsys):
    (project / 'train.py').write_text(STUB.replace('WAIT', '0'))
    root = Path('work_dirs/search/digits')
    assert run(trials=1, methods=['kd', 'scratch']) == []
    assert '2 methods with 1 trial each, in ' in capsys.readouterr().out
    before = (root / 'search.md').read_text()
    assert '| scratch | 50.00 |' in before
    (root / 'best/kd.py').write_text('# my changes')
    assert run(trials=2) == []
    assert '1 method with 2 trials each, in ' in capsys.readouterr().out
    assert (root / 'best/kd.py.1').read_text() == '# my changes'
    assert Config.fromfile(root / 'best/kd.py').model.type == 'Distiller'
    assert sorted(path.name for path in root.glob('search.md*')) == ['search.md'], 'not changed'
    (row,) = (line for line in before.splitlines() if line.startswith('| scratch'))
    assert row in (root / 'search.md').read_text().splitlines()


def test_seeds_of_an_earlier_best_are_not_averaged(project):
    """More trials have found better values, and fewer seeds are asked for."""
    assert run(trials=1, seeds=2, methods=['kd', 'scratch']) == []
    final = Path('work_dirs/search/digits/final/digits')
    assert run(trials=4) == []
    best = max(trials(), key=lambda trial: trial.value).params
    assert best[WEIGHT] > 1
    shutil.rmtree(final / 'kd/seed0')
    changed = f'is 1.0 in the stored run {final}/kd/seed1, and {best[WEIGHT]} in {final}/kd/seed0'
    with pytest.raises(ConfigError, match=re.escape(changed)):
        run(trials=4, seeds=1)
    with pytest.raises(ConfigError) as caught:
        run(trials=1, seeds=2, methods=['scratch'])
    assert str(caught.value).endswith(
        f'; remove {final}/kd, and repeat the command with --methods kd'
    )
    shutil.rmtree(final / 'kd')
    assert run(trials=4, seeds=2) == []


def test_options_of_the_pair_reach_the_student_alone(project, monkeypatch):
    tasks = []
    monkeypatch.setattr(module, 'train_all', lambda queue, *_: tasks.extend(queue._tasks))
    options = {'model.student.backbone.base_channels': 4, WEIGHT: 2.0, 'train_cfg.max_epochs': 9}
    run(methods=['scratch', 'kd'], cfg_options=options)
    scratch, kd = (task.plan.full for task in tasks)
    assert scratch.model.backbone.base_channels == kd.model.student.backbone.base_channels == 4
    assert scratch.train_cfg.max_epochs == 9 and kd.model.losses[0].weight == 2


def test_start_has_all_values_of_the_config(project):
    """The range excludes the weight, so that the first trial has another one."""
    assert run(trials=1, cfg_options={WEIGHT: 20.0}) == []
    assert '| kd | ' in (text := Path('work_dirs/search/digits/search.md').read_text())
    assert re.search(r'^\| kd \| [\d.]+ \|  \| 1 \| 0 \|', text, re.MULTILINE)


def test_large_seed(project):
    assert run(trials=2, seed=2**32 - 1) == []
    assert len({trial.params[LEARNING_RATE] for trial in trials()}) == 2


def test_a_finished_search_is_not_repeated_and_can_grow(project):
    assert run(trials=1) == []
    before = [trial.datetime_complete for trial in trials()]
    assert run(trials=2) == []
    assert [trial.datetime_complete for trial in trials()][:1] == before
    assert states(trials()) == ['COMPLETE'] * 2


# Mistakes


@pytest.mark.parametrize(
    ('kwargs', 'message'),
    [
        (
            dict(pruner='none', sampler='random'),
            "sampler was 'tpe' when it began, and would be 'random'",
        ),
        (dict(pruner='halving'), "pruner was 'none' when it began, and would be 'halving'"),
        (dict(held_out=0.5), 'train_dataloader.dataset.fraction was 0.25 when it began, and would'),
        (
            dict(cfg_options={'train_dataloader.batch_size': 5}),
            'train_dataloader.batch_size was 10',
        ),
    ],
)
def test_study_with_other_settings(project, kwargs, message, monkeypatch):
    monkeypatch.setattr(module, 'train_all', lambda queue, places, console: None)
    run()
    with pytest.raises(ConfigError) as caught:
        run(**kwargs)
    text = str(caught.value)
    assert text.startswith(f"study='digits/kd': {message}") and '\n' not in text
    assert text.endswith('; undo the change, or start another --study')


def test_study_of_another_pair(project, monkeypatch):
    monkeypatch.setattr(module, 'train_all', lambda queue, places, console: None)
    put(project / 'configs/pairs/other.py', **pair_config())
    run(study='digits')
    with pytest.raises(ConfigError) as caught:
        run(study='digits', pair='other')
    message = "study='digits/kd': pair was 'digits' when it began, and would be 'other'; undo"
    assert str(caught.value).startswith(message)


def test_study_of_other_images(project, monkeypatch):
    """The folder may be moved, but a renamed image of the held-out part is another one."""
    monkeypatch.setattr(module, 'train_all', lambda queue, places, console: None)
    helpers.image_folder(project / 'photos', {'train': 4, 'val': 1})
    config = pair_config()
    config['train_dataloader']['batch_size'] = 8  # 9 images remain at first, then 10
    config['train_dataloader']['dataset'] = dict(
        type='mldr_kd_mm.ImageFolder', data_root='photos', pipeline=[dict(type='PackInputs')]
    )
    put(project / 'configs/pairs/photos.py', **config)
    options = dict(pair='photos', storage=f'sqlite:///{project}/study.db')
    run(**options)
    elsewhere = project / 'elsewhere'
    for name in ('configs', 'photos'):
        shutil.copytree(project / name, elsewhere / name)
    monkeypatch.chdir(elsewhere)
    run(**options)
    message = (
        "study='photos/kd': the training images are not those with which it began; restore them, "
        'or start another --study'
    )
    for image in sorted(Path('photos/train/a').iterdir()):
        image.rename(image.with_stem('zz'))
        for method in ('kd', 'scratch'):
            with pytest.raises(ConfigError) as caught:
                run(**options, methods=[method])
            assert str(caught.value) == message
        image.with_stem('zz').rename(image)
    shutil.copy('photos/train/b/0.png', 'photos/train/b/new.png')
    with pytest.raises(ConfigError) as caught:
        run(**options)
    assert str(caught.value) == message


def test_study_of_an_earlier_version_has_no_hash_of_its_images():
    settings = dict(epochs=3, images='0123')
    study._check_same('digits/kd', dict(epochs=3), settings)
    with pytest.raises(ConfigError, match='epochs was 2 when it began'):
        study._check_same('digits/kd', dict(epochs=2), settings)


@pytest.mark.parametrize(
    ('options', 'drop_last'),
    [
        (dict(batch_size=29), True),  # 30 of 40 images remain
        (dict(batch_size=3), None),
        (dict(batch_size=3, drop_last=True), False),  # 40 images left one, 30 do not
        (dict(batch_size=39, drop_last=True), False),  # no batch would be full
        (dict(batch_size=8, drop_last=True), True),
        (dict(batch_size=1), None),
    ],
)
def test_last_batch_of_one(project, monkeypatch, options, drop_last):
    tasks = []
    monkeypatch.setattr(module, 'train_all', lambda queue, *_: tasks.extend(queue._tasks))
    fields = {f'train_dataloader.{name}': value for name, value in options.items()}
    run(methods=['scratch', 'kd'], cfg_options=fields)
    for task in tasks:
        assert task.plan.config.train_dataloader.get('drop_last') is drop_last
        assert task.plan.full.train_dataloader.get('drop_last') == options.get('drop_last')


def test_folder_of_another_study(project, monkeypatch):
    monkeypatch.setattr(module, 'train_all', lambda queue, places, console: None)
    run(study='first', work_dir='here')
    before = {path: path.read_bytes() for path in Path('here').iterdir()}
    with pytest.raises(ConfigError) as caught:
        run(study='second', work_dir='here')
    assert str(caught.value) == (
        "work_dir='here': belongs to the study 'first'; give another --work-dir, or --study first "
        'to continue that one'
    )
    assert before == {path: path.read_bytes() for path in Path('here').iterdir()}
    Path('mine/best').mkdir(parents=True)
    with pytest.raises(ConfigError, match="does not belong to a search and holds 'best'; give an"):
        run(work_dir='mine')


def test_methods_of_a_study_are_comparable(project, monkeypatch):
    monkeypatch.setattr(module, 'train_all', lambda queue, places, console: None)
    run()
    for kwargs, field in (
        (dict(pruner='halving'), "pruner was 'none'"),
        (dict(held_out=0.5), 'train_dataloader.dataset.fraction was 0.25'),
        (dict(cfg_options={'train_cfg.max_epochs': 5}), 'train_cfg.max_epochs was 3'),
        (
            dict(cfg_options={'model.student.backbone.base_channels': 4}),
            'model.backbone.base_channels was 8',
        ),
    ):
        with pytest.raises(ConfigError) as caught:
            run(methods=['scratch'], **kwargs)
        assert str(caught.value).startswith(f"study='digits/kd': {field} when it began, and would")
    run(methods=['scratch'])


@pytest.mark.parametrize(
    ('kwargs', 'message'),
    [
        (
            dict(methods=['kd', 'my/kd.py']),
            "method='my/kd.py': 'kd' is given twice; give it once, or rename the file",
        ),
        (
            dict(cfg_options={'model.teacher_checkpoint': 'work_dirs/vit/epoch_9.pth'}),
            "model.teacher_checkpoint='work_dirs/vit/epoch_9.pth': there is no such file; train "
            'the teacher first: python tools/train.py configs/teachers/vit.py',
        ),
        (dict(storage='nonsense'), "storage='nonsense': must be the URL of a database, such as"),
        (
            dict(storage='sqlite:////no/such/folder/study.db'),
            "storage='sqlite:////no/such/folder/study.db': cannot be reached (",
        ),
        (
            dict(storage='oracle://me:secret@host/name'),
            "storage='oracle://me:***@host/name': cannot be reached (",
        ),
        (dict(held_out=0.1), 'held_out=0.1: class 0 has 4 images, which leaves its held-out part'),
        (dict(held_out=1.0), 'held_out=1.0: must be between 0 and 1'),
        (dict(methods=['kdd']), "method='kdd': there is no configs/_base_/methods/kdd.py; did you"),
        (dict(trials=0), 'trials=0: must be a positive integer'),
        (dict(jobs=0), 'jobs=0: must be a positive integer'),
        (dict(seeds=-1), 'seeds=-1: must be a non-negative integer'),
        (dict(seed=-1), 'seed=-1: must be a non-negative integer'),
        (
            dict(cfg_options={'model.teacher_checkpoint': 'no.pth'}),
            "model.teacher_checkpoint='no.pth': there is no such file; train the teacher first",
        ),
    ],
)
def test_mistake_is_one_line(project, kwargs, message):
    put(project / 'my/kd.py', method=KD)
    put(project / 'configs/teachers/vit.py', **pair_config())
    with pytest.raises(ConfigError) as caught:
        run(**kwargs)
    assert str(caught.value).startswith(message) and '\n' not in str(caught.value)


def test_command_names_its_options(project, capsys):
    arguments = ['tune', '--pair', 'digits', '--methods', 'kd', '--held-out', '0.25']
    handler = signal.getsignal(signal.SIGTERM)
    for options, message in [
        (['--storage', 'nonsense'], "error: --storage 'nonsense': must be the URL of a database, "),
        (['--held-out', '2'], 'error: --held-out 2.0: must be between 0 and 1\n'),
        (['--cfg-options', 'lr'], 'usage: '),
    ]:
        with pytest.raises(SystemExit) as end:
            main([*arguments, *options])
        assert end.value.code == 2
        assert capsys.readouterr().err.startswith(message)
    assert signal.getsignal(signal.SIGTERM) is handler


def test_a_config_that_cannot_train_stops_the_search(project):
    (project / 'train.py').write_text("print('error: model: no'); raise SystemExit(2)")
    with pytest.raises(ConfigError, match='kd trial 0 ended with code 2, .*: error: model: no'):
        run(trials=3)
    assert states(trials()) == ['FAIL', 'WAITING', 'WAITING']


def test_an_interrupted_trial_waits(project, monkeypatch):
    def interrupt(queue, places, console):
        assert queue.pop() is not None
        raise KeyboardInterrupt

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(module, 'train_all', interrupt)
        run(trials=1)
    assert states(trials()) == ['WAITING']
    assert run(trials=1) == []
    assert states(trials()) == ['COMPLETE']
    with sqlite3.connect('work_dirs/search/digits/study.db') as database:
        assert database.execute('select count(*) from studies').fetchone() == (1,)

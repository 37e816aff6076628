"""The shipped configs: their pairs, methods and recipes."""

import copy
import re
import runpy
import shutil
from functools import cache
from pathlib import Path

import numpy as np
import pytest
import torch
from helpers import batch as one_batch
from helpers import mldr
from mmengine.config import Config
from mmengine.dataset import default_collate
from mmengine.optim import build_optim_wrapper
from mmengine.registry import HOOKS, PARAM_SCHEDULERS
from PIL import Image

from mldr_kd_mm.apis.configs import compose
from mldr_kd_mm.models.taps.stages import stage_taps
from mldr_kd_mm.models.weights import load_weights
from mldr_kd_mm.registry import DATASETS, MODELS
from mldr_kd_mm.utils.checkpoint import read_weights

ROOT = Path(__file__).parents[1]
# METHOD.md, section 4, and two Mamba students.
PAIRS = [
    ('swin-tiny', 'resnet18'),
    ('vit-small', 'resnet18'),
    ('mixer-b16', 'resnet18'),
    ('vim-small', 'resnet18'),
    ('vit-large', 'resnet101'),
    ('swin-tiny', 'mobilenet-v2'),
    ('vit-small', 'mobilenet-v2'),
    ('convnext-tiny', 'deit-tiny'),
    ('mixer-b16', 'deit-tiny'),
    ('convnext-tiny', 'swin-pico'),
    ('convnext-tiny', 'resmlp-s12'),
    ('swin-tiny', 'resmlp-s12'),
    ('convnext-tiny', 'vim-tiny'),
    ('swin-tiny', 'vim-tiny'),
]
IN1K = [('swin-tiny', 'resnet18'), ('convnext-tiny', 'deit-tiny'), ('swin-tiny', 'resmlp-s12')]
# Pair whose teacher is in configs/teachers -> its student alone.
ALONE = {
    f'mldr/{teacher}_to_{student}_{data}': f'scratch/{student}_{data}'.replace('-v2', '')
    for teacher, student in PAIRS
    for data in ('c100', 'tinyimagenet')
} | {
    'mldr/deit_to_mobilenet_c100': 'scratch/mobilenet_c100',
    'mldr/deit_to_mobilenet_c100_32px': 'scratch/mobilenet_c100_32px',
    'mldr/vit-small_to_resnet18_tinyimagenet_64px': 'scratch/resnet18_tinyimagenet_64px',
}
# Losses that each method's release, or OFA-KD's version, adds to the student's own loss.
METHODS = {
    'mldr': dict(type='DFRALoss', temperature=1.0, alpha=2.0, max_relation=4.0),
    'kd': dict(type='KDLoss', temperature=1.0),
    'dkd': dict(type='DKDLoss', alpha=1.0, beta=2.0, temperature=1.0),
    'dist': dict(type='DISTLoss', beta=1.0, gamma=1.0, temperature=1.0),
    'ofa': dict(type='OFALoss', eps=1.0),
    'rkd': dict(type='RKDLoss', distance_weight=25.0, angle_weight=50.0),
    'cc': dict(type='CCLoss', dim=128),
    'crd': dict(type='CRDLoss', num_samples=50000, negatives=16384, temperature=0.07),
    'fitnet': dict(type='FitNetLoss'),
    'ls': dict(type='LogitStandardizationLoss', temperature=2.0),
    'rsd': dict(type='RSDLoss', kappa=0.01),
    'hcd': dict(type='HCDLoss', sub_logits=4, kl_weight=6.0),
}
WEIGHTS = {'cc': 0.02, 'crd': 0.8, 'rsd': 0.1}
ALL_HEADS = ['logits', 'stage_logits', 'fused_logits']
ABLATIONS = {
    'mldr_logits': (['logits'], {}),
    'mldr_features': (['stage_logits', 'fused_logits'], {}),
    'mldr_no-class': (ALL_HEADS, dict(class_weight=0.0)),
    'mldr_no-sample': (ALL_HEADS, dict(sample_weight=0.0)),
    'mldr_no-probability': (ALL_HEADS, dict(alpha=0.0)),
    'mldr_no-gate': (ALL_HEADS, {}),
    'mldr_paper': (ALL_HEADS, dict(max_relation=None)),
    'mldr_ls': (ALL_HEADS, dict(standardize=True)),
    'mldr_t4': (ALL_HEADS, dict(temperature=4.0)),
    'mldr_small': (ALL_HEADS, {}),
    'mldr_small-stages': (ALL_HEADS, {}),
}
WEIGHTS_OF_ABLATIONS = {'mldr_small': 0.1, 'mldr_small-stages': [1.0, 0.1, 0.1]}
CNNS = ('resnet18', 'resnet101', 'mobilenet')
ON_20_CLASSES = tuple(
    f'{teacher}_to_{student}_cifar100-20cls'
    for teacher, student in (('resnet18', 'mixer'), ('resnet18', 'vit'), ('vit', 'resnet18'))
)
SGD = dict(type='SGD', lr=0.05, momentum=0.9, nesterov=True, weight_decay=2e-3)
MIXING = dict(augments=[dict(type='Mixup', alpha=0.8), dict(type='CutMix', alpha=1.0)])


def load(name):
    return copy.deepcopy(read(name))


@cache
def read(name):
    return Config.fromfile(ROOT / f'configs/{name}.py')


def test_all_pairs_are_there():
    in1k = {f'mldr/{teacher}_to_{student}_in1k' for teacher, student in IN1K}
    shipped = {f'mldr/{path.stem}' for path in (ROOT / 'configs/mldr').glob('*.py')}
    assert shipped == set(ALONE) | in1k
    pairs = {f'mldr/{path.stem}' for path in (ROOT / 'configs/pairs').glob('*.py')}
    assert pairs == shipped | {f'mldr/{pair}' for pair in ON_20_CLASSES}


def test_mldr_config_is_its_pair_with_the_method(subtests):
    """Each file in configs/mldr is the paper's form, with the same result as --method."""
    for path in sorted((ROOT / 'configs/mldr').glob('*.py')):
        with subtests.test(path.stem):
            code = path.read_text().rpartition('"""')[2]
            bases = f"_base_ = ['../pairs/{path.name}', '../_base_/methods/mldr_paper.py']"
            assert code.split() == [*bases.split(), 'model', '=', '_base_.method']
            inherited = Config.fromfile(path)
            inherited.pop('method')
            inherited.pop('search_space')
            composed = compose(load(f'pairs/{path.stem}'), 'mldr_paper')
            assert composed.to_dict() == inherited.to_dict()


def test_method(subtests):
    """A method has the values of its paper and OFA-KD, and only changes the model of a pair."""
    pair = load('pairs/deit_to_mobilenet_c100_32px')
    for method, loss in METHODS.items():
        with subtests.test(method):
            cfg = compose(pair, method)
            (entry,) = cfg.model.losses
            assert entry.loss == loss
            weight = [1.0, 0.1] if method == 'ofa' else WEIGHTS.get(method, 1.0)
            assert entry.get('weight', 1.0) == weight
            for own in ('losses', 'neck', 'student_recorder'):
                cfg.model.pop(own, None)
            cfg.pop('stages', None)  # a variable of FitNet's file
            assert cfg.to_dict() == pair.to_dict()


def test_ofa_weighs_the_stages_of_a_cnn_less(subtests):
    pairs = {
        'deit_to_mobilenet_c100_32px': [1.0, 0.1],
        'vit_to_resnet18_cifar100-20cls': [1.0, 0.1],
        'resnet18_to_vit_cifar100-20cls': 1.0,
        'convnext-tiny_to_swin-pico_c100': 1.0,
        'convnext-tiny_to_resmlp-s12_c100': 1.0,
        'convnext-tiny_to_vim-tiny_c100': 1.0,
    }
    for pair, weight in pairs.items():
        with subtests.test(pair):
            cfg = load(f'pairs/{pair}')
            assert compose(cfg, 'ofa').model.losses[0].weight == weight
            as_it_is = compose(cfg, str(ROOT / 'configs/_base_/methods/ofa.py'))
            assert as_it_is.model.losses[0].weight == 1.0


def test_readmes_of_methods(subtests):
    """The READMEs are short, show a command, and have the current results in their tables."""
    tables = runpy.run_path(ROOT / 'docs/benchmarks/write_tables.py')
    for method in METHODS:
        with subtests.test(method):
            readme = (ROOT / f'configs/{method}/README.md').read_text()
            assert len(readme.splitlines()) <= 60
            command = 'configs/mldr/' if method == 'mldr' else f'--method {method}\n'
            assert command in readme
            fix = 'run: python docs/benchmarks/write_tables.py'
            assert tables['with_results'](readme, method) == readme, fix


def test_teachers_of_the_benchmark_differ_from_its_students_in_size(subtests):
    for pair in ON_20_CLASSES:
        with subtests.test(pair):
            cfg = load(f'pairs/{pair}')
            teacher = Path(cfg.model.teacher_checkpoint).parent.name
            trained = load(f'teachers/{teacher}')
            epochs = trained.train_cfg.max_epochs
            assert cfg.model.teacher_checkpoint == f'work_dirs/{teacher}/epoch_{epochs}.pth'
            assert cfg.data_preprocessor == trained.data_preprocessor
            for model in (cfg.model.teacher, trained.model):
                del model.head.loss  # only used when it is trained
            assert cfg.model.teacher == trained.model
            labels = [config.train_dataloader.dataset.subset.labels for config in (cfg, trained)]
            assert labels[0] == labels[1] == list(range(0, 100, 5))


def test_ablation_differs_from_the_method_in_one_thing(subtests):
    whole = load('_base_/methods/mldr').method
    for ablation, (heads, changes) in ABLATIONS.items():
        with subtests.test(ablation):
            method = load(f'_base_/methods/{ablation}').method
            (entry,) = method.losses
            assert entry.loss == METHODS['mldr'] | changes
            assert entry.get('student', ['logits']) == heads
            assert entry.get('weight', 1.0) == WEIGHTS_OF_ABLATIONS.get(ablation, 1.0)
            assert ('neck' in method) == (len(heads) > 1)
            if ablation == 'mldr_no-gate':
                assert method.neck == dict(type='MSDFNeck', gate_dim=0)
            elif 'neck' in method:
                assert method.neck == whole.neck


def test_combination_with_rsd():
    mldr, rsd, both = (
        load(f'_base_/methods/{name}').method for name in ('mldr', 'rsd', 'mldr_rsd')
    )
    assert both.losses == [*mldr.losses, *rsd.losses]
    assert both.neck == mldr.neck


def test_rsd_on_logits_replaces_the_terms_of_ofa():
    rsd, ofa, logits = (
        load(f'_base_/methods/{name}').method for name in ('rsd', 'ofa', 'rsd_logits')
    )
    (entry,) = logits.losses
    assert entry.loss == dict(rsd.losses[0].loss, decoupler=False)
    assert entry.weight == rsd.losses[0].weight
    assert entry.student == ofa.losses[0].student
    assert logits.neck == ofa.neck


def test_fbt_is_ofa_on_the_logits_and_infonce():
    ofa, contrast = load('_base_/methods/fbt').method.losses
    assert ofa.loss == METHODS['ofa']
    assert contrast.loss == dict(type='InfoNCELoss', temperature=0.07, dim=128)
    assert (ofa.teacher, contrast.teacher) == ('logits', 'feature')


def test_pair_is_trained_as_its_student_alone(subtests):
    shared = (
        'optim_wrapper',
        'param_scheduler',
        'train_dataloader',
        'train_cfg',
        'data_preprocessor',
        'randomness',
    )
    for pair, student in ALONE.items():
        with subtests.test(pair):
            cfg, alone = load(pair), load(student)
            assert all(cfg[field] == alone[field] for field in shared)
            assert cfg.get('custom_hooks') == alone.get('custom_hooks')
            assert cfg.model.student == alone.model


def test_teacher_is_what_its_config_trains(subtests):
    for pair in ALONE:
        with subtests.test(pair):
            cfg = load(pair)
            path = Path(cfg.model.teacher_checkpoint)
            trained = load(f'teachers/{path.parent.name}')
            assert path.name == f'epoch_{trained.train_cfg.max_epochs}.pth'
            assert cfg.data_preprocessor == trained.data_preprocessor
            # Drop path and mixing are only used when the teacher is trained.
            for model in (cfg.model.teacher, trained.model):
                model.pop('train_cfg', None)
                model.get('backbone', model).pop('drop_path_rate', None)
            assert cfg.model.teacher == trained.model


def test_recipe_goes_with_the_student(subtests):
    """A CNN gets the release's recipe, any other student OFA-KD's."""
    for pair in (pair for pair in ALONE if not pair.endswith('32px')):
        with subtests.test(pair):
            cfg = load(pair)
            steps = {step.type for step in cfg.train_dataloader.dataset.pipeline}
            if any(f'to_{cnn}' in pair for cnn in CNNS):
                assert cfg.optim_wrapper == dict(optimizer=SGD)
                assert 'RandAugment' not in steps
                assert 'train_cfg' not in cfg.model.student
            else:
                assert cfg.optim_wrapper.optimizer == dict(type='AdamW', lr=5e-4, weight_decay=0.05)
                assert cfg.optim_wrapper.clip_grad == dict(max_norm=5.0)
                assert {'RandAugment', 'RandomErasing'} <= steps
                assert cfg.model.student.train_cfg == MIXING
            assert cfg.train_dataloader.batch_size == 128
            assert cfg.train_cfg.max_epochs == 300
            student = cfg.model.student
            assert student.get('head', student).loss.label_smooth_val == 0.1


def test_only_published_recipes_do_not_clip(subtests):
    """With --method mldr, no other pair diverges at high rates: docs/stability.md."""
    adaptive = dict(type='mldr_kd_mm.AdaptiveClipHook')
    for name in (*(f'pairs/{pair}' for pair in ON_20_CLASSES), 'quickstart/mldr'):
        with subtests.test(name):
            cfg = load(name)
            assert 'clip_grad' in cfg.optim_wrapper or adaptive in cfg.custom_hooks


def test_recipe_of_imagenet():
    cnn = load('mldr/swin-tiny_to_resnet18_in1k')
    assert cnn.train_dataloader.batch_size * 8 == cnn.auto_scale_lr.base_batch_size == 512
    for teacher, student in IN1K[1:]:
        cfg = load(f'mldr/{teacher}_to_{student}_in1k')
        assert cfg.train_dataloader.batch_size * 8 == cfg.auto_scale_lr.base_batch_size == 1024
        assert cfg.model.student.train_cfg == MIXING
        (hook,) = cfg.custom_hooks
        assert HOOKS.build(hook).ema_cfg['momentum'] == pytest.approx(4e-5)
    for teacher, student in IN1K:
        model = load(f'mldr/{teacher}_to_{student}_in1k').model
        assert model.teacher.pretrained and model.teacher_checkpoint is None


def test_swin_pico():
    """Swin-P is OFA-KD's: half of Swin-T's width, two blocks per stage, heads of width 24."""
    model = MODELS.build(Config.fromfile(ROOT / 'configs/_base_/models/swin-pico.py').swin_pico)
    stages = [model.get_submodule(path) for path in stage_taps(model).values()]
    blocks = [[block.attn for block in stage.blocks] for stage in stages]
    heads = [[attn.num_heads for attn in stage] for stage in blocks]
    assert heads == [[2, 2], [4, 4], [8, 8], [16, 16]]
    assert [stage[0].qkv.in_features for stage in blocks] == [48, 96, 192, 384]


@pytest.mark.parametrize('name', ['scratch/vim-tiny_c100', 'mldr/swin-tiny_to_vim-tiny_c100'])
def test_decay_of_vision_mamba(name):
    cfg = load(name)
    if 'teacher' in cfg.model:
        # Any small values work.
        cfg.model.teacher.update(model_name='resnet10t')
        cfg.model.teacher_checkpoint = None
    student = cfg.model.get('student', cfg.model)
    student.update(depth=4)
    model = MODELS.build(cfg.model)
    wrapper = build_optim_wrapper(model, cfg.optim_wrapper)
    groups = {id(p): group for group in wrapper.param_groups for p in group['params']}
    decay = {
        name.removeprefix('student.'): groups[id(parameter)]['weight_decay']
        for name, parameter in model.named_parameters()
    }
    mixer = 'layers.3.mixer'
    for name in ('A_log', 'A_b_log', 'D', 'D_b', 'conv1d.bias', 'dt_proj_b.bias'):
        assert decay[f'{mixer}.{name}'] == 0, name
    for name in ('pos_embed', 'cls_token', 'norm_f.weight', 'layers.0.norm.weight', 'head.bias'):
        assert decay[name] == 0, name
    for name in ('in_proj', 'out_proj', 'conv1d', 'conv1d_b', 'x_proj', 'dt_proj'):
        assert decay[f'{mixer}.{name}.weight'] == 0.05, name
    assert decay['head.weight'] == decay['patch_embed.proj.weight'] == 0.05


@pytest.mark.parametrize(
    'name', ['convnext-tiny_c100', 'vit-small_tinyimagenet_64px', 'vim-small_tinyimagenet']
)
def test_teachers_start_from_what_their_docstrings_say(name, tmp_path, monkeypatch):
    """The file has all weights except the head's; the docstring's command writes it."""
    cfg = load(f'teachers/{name}')
    docstring = Path(cfg.filename).read_text()
    monkeypatch.chdir(tmp_path)
    if 'vim' in name:
        whole = MODELS.build(dict(cfg.model, num_classes=1000)).state_dict()
        torch.save(dict(model=whole, epoch=3), 'AUTHORS_FILE')
    else:
        (command,) = re.findall('python -c "(.*?)"\n', docstring, re.DOTALL)
        # timm would download the weights.
        exec(command.replace('pretrained=True', 'num_classes=1000'))
    (weights,) = re.findall(r'load_from=(\S+)', docstring)

    model = MODELS.build(cfg.model)
    model.init_weights()
    report = load_weights(model, weights, 'load_from', for_training=True)
    loaded, given = model.state_dict(), read_weights(weights)[0]
    assert set(loaded) == set(given)
    other = {name for name in given if not torch.equal(loaded[name], given[name])}
    assert other in ({'head.weight', 'head.bias'}, {'head.fc.weight', 'head.fc.bias'})
    assert {*report.missing} == other


@pytest.mark.parametrize(
    ('schedule', 'lr_at_epoch'),
    [
        ('cnn_300e', {0: 1e-4, 1: 1e-4 + 0.0499 / 3, 3: 0.05, 151: 0.0255, 299: 1e-3}),
        ('cnn_40e', {0: 1e-4, 3: 0.05, 21: 0.0255, 39: 1e-3}),
        ('cnn_100e_in1k', {0: 1e-4, 3: 0.1, 29: 0.1, 30: 0.01, 60: 1e-3, 90: 1e-4, 99: 1e-4}),
        ('transformer_300e', {0: 5e-7, 20: 5e-4, 299: 1e-5}),
        ('transformer_300e_in1k', {0: 5e-7, 20: 5e-4, 299: 1e-6}),
        ('mamba_300e', {0: 5e-7, 20: 5e-4, 299: 1e-5}),
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


def python_blocks(page):
    """Return the Python blocks of a page."""
    return re.findall('```python\n(.*?)```', (ROOT / page).read_text(), re.DOTALL)


def test_config_of_the_readme(tmp_path, monkeypatch):
    """The config, written into a copy of configs/ with its bases, takes a step."""
    shutil.copytree(ROOT / 'configs/_base_', tmp_path / 'configs/_base_')
    path = tmp_path / 'configs/mine/mine.py'
    path.parent.mkdir()
    source, method, *_ = python_blocks('docs/configs.md')
    path.write_text(source)
    cfg = Config.fromfile(path)
    written = {}
    exec(method, written)
    assert cfg.method.to_dict() == written['method']

    monkeypatch.chdir(tmp_path)
    random = np.random.default_rng(0)
    for split in ('train', 'val'):
        for number in range(37):
            file = tmp_path / f'data/folder/{split}/class{number:02}/image.png'
            file.parent.mkdir(parents=True)
            pixels = random.integers(0, 256, (40, 40, 3), dtype=np.uint8)
            Image.fromarray(pixels).save(file)
    torch.save(MODELS.build(cfg.model.teacher).state_dict(), 'my_teacher.pth')

    model = MODELS.build(dict(cfg.model, data_preprocessor=cfg.data_preprocessor))
    assert model.neck.in_channels == (64, 128, 256, 512)
    assert model.neck.projectors[0]['classifier'].in_features == 768, "the teacher's width"
    images, tested = (
        DATASETS.build(cfg[f'{split}_dataloader'].dataset) for split in ('train', 'val')
    )
    assert len(images) == len(tested) == 37
    batch = default_collate([images[0], images[36]])
    losses = model.loss(**model.data_preprocessor(batch, True))
    assert all(loss.isfinite() for loss in losses.values())
    assert [sample.gt_label.item() for sample in batch['data_samples']] == [0, 36]


def test_a_folder_of_few_classes_is_measured():
    """Accuracy among the first five needs five classes."""
    cfg = load('_base_/datasets/folder_224')
    assert cfg.val_evaluator == cfg.test_evaluator == dict(type='Accuracy', topk=1)
    assert load('_base_/datasets/imagenet_224').val_evaluator.topk == (1, 5)


def test_neck_of_the_docs(tmp_path, monkeypatch):
    """docs/methods.md shows a custom neck and a method that uses it."""
    *_, neck, method = python_blocks('docs/methods.md')
    (tmp_path / 'my_necks.py').write_text(neck)
    (tmp_path / 'mine.py').write_text(method)
    monkeypatch.syspath_prepend(tmp_path)
    try:
        model = MODELS.build(mldr(**Config.fromfile(tmp_path / 'mine.py').method))
        losses = model(**model.data_preprocessor(one_batch(), True), mode='loss')
        assert {*losses} == {'loss', 'loss_kd_logits', 'loss_kd_auxiliary'}
    finally:
        for registry in (MODELS, MODELS.parent):
            registry.module_dict.pop('AuxiliaryHead', None)


def test_loss_of_the_docs(tmp_path, monkeypatch):
    """docs/methods.md shows a custom loss and a method that uses it."""
    _, _, loss, method, *_ = python_blocks('docs/methods.md')
    (tmp_path / 'my_losses.py').write_text(loss)
    (tmp_path / 'mine.py').write_text(method)
    monkeypatch.syspath_prepend(tmp_path)
    try:
        cfg = Config.fromfile(tmp_path / 'mine.py')
        model = MODELS.build(mldr(**cfg.method))
        project = model.losses[0].losses[0].project
        assert (project.in_features, project.out_features) == (64, 32)
        losses = model(**model.data_preprocessor(one_batch(), True), mode='loss')
        assert 0 <= losses['loss_cosine_feature'] <= 2
    finally:
        for registry in (MODELS, MODELS.parent):
            registry.module_dict.pop('CosineLoss', None)

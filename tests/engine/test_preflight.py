"""A mistake anywhere in a config is one line that names the field, before the first step."""

import random

import numpy as np
import pytest
import torch
from helpers import NORMALIZATION, mldr, resnet, runner_config
from mmengine.config import Config, DictAction
from mmengine.evaluator import BaseMetric
from mmengine.hooks import Hook
from mmengine.model import BaseModel
from mmengine.optim import OptimWrapper, OptimWrapperDict
from mmengine.registry import OPTIM_WRAPPER_CONSTRUCTORS
from mmengine.visualization import Visualizer
from mmpretrain.datasets import BaseDataset

from mldr_kd_mm import ConfigError
from mldr_kd_mm.engine.launch import fit_to_machine
from mldr_kd_mm.engine.preflight import preflight
from mldr_kd_mm.registry import DATASETS, HOOKS, MODELS
from mldr_kd_mm.utils.random import preserve_global_rng

FIELDS = ('model', 'train_cfg', 'optim_wrapper', 'train_dataloader', 'val_dataloader')
FIGURES = dict(type='FigureHook')


@DATASETS.register_module()
class Unlabelled(BaseDataset):
    """Black images, the first of which has a label if asked for."""

    METAINFO = {'classes': tuple('abcdefghij')}

    def __init__(self, labelled=False, files=False, **kwargs):
        self.labelled, self.files = labelled, files
        super().__init__(ann_file='', **kwargs)

    def load_data_list(self):
        item = {'img_path': 'a.png'} if self.files else {'img': np.zeros((8, 8, 3), np.uint8)}
        return [dict(item, **({'gt_label': 0} if self.labelled else {})) for _ in range(4)]


@pytest.fixture
def config(tmp_path):
    """Return a function that makes the config of a run, with some fields changed."""

    def make(model=None, **changes):
        cfg = Config(runner_config(model or resnet(), tmp_path / 'run'))
        cfg.data_preprocessor = dict(NORMALIZATION)
        cfg.merge_from_dict(changes)
        return cfg

    return make


def refusal(cfg, fields=FIELDS):
    """Return the one-line message with which a config is refused."""
    with pytest.raises(ConfigError) as caught:
        preflight(cfg, *fields)
    assert '\n' not in str(caught.value)
    return str(caught.value)


def dataset(**kwargs):
    return dict(_delete_=True, type='Unlabelled', pipeline=[dict(type='PackInputs')], **kwargs)


# Changes -> beginning and end of the message.
MISTAKES = {
    # Data
    'train_dataloader.batchsize=4': (
        'train_dataloader.batchsize: DataLoader takes no such argument; did you mean batch_size?'
    ),
    'train_dataloader.sampler.shufle=True': (
        'train_dataloader.sampler.shufle: DefaultSampler takes no such argument; did you mean '
        'shuffle?'
    ),
    'val_dataloader.sampler.type=DefaultSample': (
        "val_dataloader.sampler.type: there is no data sampler 'DefaultSample'; did you mean "
        'DefaultSampler'
    ),
    'train_dataloader.sampler=None': 'train_dataloader.sampler=None: must be a dict with a type',
    'train_dataloader.dataset.split=tset': "split='tset'",
    'train_dataloader.dataset.spilt=train': (
        'train_dataloader.dataset.spilt: Digits takes no such argument; did you mean split?'
    ),
    'val_dataloader.batch_size=0': 'val_dataloader.batch_size=0: must be a positive integer',
    # Schedule
    'train_cfg.val_interval=0': 'train_cfg.val_interval=0: must be a positive integer',
    'train_cfg.max_epochs=0': 'train_cfg.max_epochs=0: must be a positive integer',
    'train_cfg.max_epoch=3': (
        'train_cfg.max_epoch: EpochBasedTrainLoop takes no such argument; did you mean max_epochs?'
    ),
    'train_cfg.type=EpochBasedTrainLoop': 'train_cfg.by_epoch: must not be set beside a type',
    'train_cfg.by_epoch=None': 'train_cfg: must have by_epoch=True with max_epochs, or',
    'param_scheduler.type=LinearRL': (
        "param_scheduler.0.type: there is no parameter scheduler 'LinearRL'; did you mean LinearLR"
    ),
    'param_scheduler.gama=0.1': (
        'param_scheduler.0.gama: StepLR takes no such argument; did you mean gamma?'
    ),
    'optim_wrapper.optimizer.type=SDG': (
        "optim_wrapper.optimizer.type: there is no optimizer 'SDG'; did you mean SGD"
    ),
    'optim_wrapper.optimizer.momentun=0.9': (
        'optim_wrapper.optimizer.momentun: SGD takes no such argument; did you mean momentum?'
    ),
    'optim_wraper.clip_grad=1': 'optim_wraper: nothing reads this field; did you mean optim_w',
    'randomness.sed=1': 'randomness.sed: set_randomness takes no such argument; did you mean seed?',
    'randomness=None': 'randomness=None: must be a dict',
    'randomness.seed=x': "randomness.seed='x': must be a non-negative number",
    'env_cfg.mp_cfg.mp_start_method=thread': (
        "env_cfg.mp_cfg.mp_start_method='thread': must be 'fork' or"
    ),
    'env_cfg=fork': "env_cfg='fork': must be a dict",
    'env_cfg.mp_cfg.opencv_num_threads=x': (
        "env_cfg.mp_cfg.opencv_num_threads='x': must be a non-negative number"
    ),
    'env_cfg.mp_cfg.threads=1': 'env_cfg.mp_cfg.threads: set_multi_processing takes no such',
    'default_scope=1': 'default_scope=1: must be the name of a package',
    # Hooks
    'default_hooks.checkpoint.intervall=5': (
        'default_hooks.checkpoint.intervall: AtomicCheckpointHook takes no such argument; did you '
        'mean interval?'
    ),
    'default_hooks.checkpoint.save_best=accuracy/top2': (
        "default_hooks.checkpoint.save_best='accuracy/top2': no metric of val_evaluator; "
        'available: accuracy/top1'
    ),
    'default_hooks.logger.type=LogerHook': (
        "default_hooks.logger.type: there is no hook 'LogerHook'; did you mean LoggerHook"
    ),
    'default_hooks.logger=LoggerHook': (
        "default_hooks.logger='LoggerHook': must be a dict with a type"
    ),
    'custom_hooks.type=EMAHok': "custom_hooks.0.type: there is no hook 'EMAHok'; did you mean EMA",
    'custom_hooks=0': 'custom_hooks=0: must be a list of dicts with a type',
    'default_hooks.logger.interval=often': 'default_hooks.logger: interval must be an integer',
    'default_hooks.checkpoint.interval=[1]': (
        'default_hooks.checkpoint.interval=[1]: must be an integer'
    ),
    'default_hooks.checkpoint.interal_=1': (
        'default_hooks.checkpoint.interal_: AtomicCheckpointHook takes no such argument; did you'
    ),
    'default_hooks.checkpoint.keep=1': (
        'default_hooks.checkpoint.keep: save_checkpoint takes no such argument'
    ),
    'default_hooks.ema.decay=0.9': ('default_hooks.ema.decay: EMAHook takes no such argument'),
    'default_hooks.ema.momentum=2': 'default_hooks.ema: momentum must be in range',
    'auto_scale_lr=64': 'auto_scale_lr=64: must be a dict',
    'auto_scale_lr.base_batch_size=0': 'auto_scale_lr.base_batch_size=0: must be a positive',
    'log_level=LOUD': "log_level='LOUD': must be DEBUG, INFO, WARNING or ERROR",
    'log_processor.window_size=0.5': 'log_processor.window_size=0.5: must be a positive integer',
    'train_dataloader.batch_size=None': (
        'train_dataloader.batch_size=None: must be a positive integer'
    ),
    'optim_wrapper=SGD': "optim_wrapper='SGD': must be a dict",
    'custom_hooks.priority=SOMETIMES': 'custom_hooks.0: ',
    'custom_hooks.monitor=accuracy/top7': (
        "custom_hooks.0.monitor='accuracy/top7': no metric of val_evaluator"
    ),
    # Evaluation
    'val_evaluator.topk=[1,50]': (
        'val_evaluator.topk=[1, 50]: must be at most 10, the number of classes'
    ),
    'val_evaluator.type=Acuracy': (
        "val_evaluator.type: there is no metric 'Acuracy'; did you mean Accuracy"
    ),
    'val_evaluator=None': (
        'val_evaluator: must be set, as val_dataloader and val_cfg and val_evaluator belong'
    ),
    'val_evaluator.top_k=1': 'val_evaluator.top_k: Accuracy takes no such argument; did you mean',
    # Visualizer
    'visualizer=5': 'visualizer=5: must be a dict with a type',
    'visualizer.type=Accuracy': "visualizer.type: there is no visualizer 'Accuracy'; ",
    'visualizer.vis_backends=LocalVisBackend': (
        "visualizer.vis_backends='LocalVisBackend': must be a list of dicts with a type"
    ),
    'visualizer.vis_backends=[LocalVisBackend]': (
        "visualizer.vis_backends.0='LocalVisBackend': must be a dict with a type"
    ),
    'visualizer.vis_backends.type=TensorBoardVisBackend': (
        "visualizer.vis_backends.0.type: there is no vis_backend 'TensorBoardVisBackend'; did you "
        'mean TensorboardVisBackend'
    ),
    'visualizer.vis_backends.img_savedir=x': (
        'visualizer.vis_backends.0.img_savedir: LocalVisBackend takes no such argument; did you '
        'mean img_save_dir?'
    ),
    'visualizer.vis_backend=[]': (
        'visualizer.vis_backend: UniversalVisualizer takes no such argument; did you mean '
        'vis_backends'
    ),
    # Model
    'model.head.loss.class_weight=[1.0,2.0,3.0]': (
        'model.head.loss.class_weight: the loss of the first images: weight tensor should'
    ),
    'model.head.lss=1': 'model.head.lss: LinearClsHead takes no such argument; did you mean loss?',
    'model.backbone.type=RestNet': "model.backbone.type: there is no model 'RestNet'; did you mean",
    'model=1': 'model=1: must be a dict with a type',
    'train_dataloader.dataset=1': 'train_dataloader.dataset=1: must be a dict with a type',
    'model.head.num_classes=7': 'model: the loss of the first images: Target ',
}
# What an example needs to be a mistake of its field alone.
NEEDED = {
    'model.head.loss': {'model.head.loss': dict(type='CrossEntropyLoss')},
    'param_scheduler': dict(param_scheduler=dict(type='StepLR', step_size=1)),
    'custom_hooks': dict(custom_hooks=dict(type='EarlyStoppingHook', monitor='accuracy/top1')),
    'default_hooks.checkpoint': {
        'default_hooks.checkpoint': dict(type='AtomicCheckpointHook', save_best='accuracy/top1')
    },
    'default_hooks.ema': {'default_hooks.ema': dict(type='EMAHook', momentum=0.1)},
    'visualizer': dict(
        visualizer=dict(type='UniversalVisualizer', vis_backends=dict(type='LocalVisBackend'))
    ),
}


def needed(field):
    fields = {}
    for prefix, config in NEEDED.items():
        fields |= config if field.startswith(prefix) else {}
    return fields


@pytest.mark.parametrize('mistake', MISTAKES)
def test_mistake(config, mistake):
    field, _, value = mistake.partition('=')
    cfg = config(**needed(field))
    cfg.merge_from_dict({field: parse(value)})
    assert MISTAKES[mistake] in refusal(cfg)


def parse(value):
    """Return a value of the command line as mmengine's DictAction does."""
    return DictAction._parse_iterable(value)


@pytest.mark.parametrize('loop', [dict(by_epoch=False), dict(type='IterBasedTrainLoop')])
def test_schedules_that_count_epochs_in_a_run_of_iterations(config, loop):
    cosine = dict(type='CosineAnnealingLR', T_max=8)
    cfg = config(train_cfg=dict(_delete_=True, max_iters=8, **loop), param_scheduler=cosine)
    assert refusal(cfg).startswith('param_scheduler.0.by_epoch=True: must be False, with all')
    cfg.param_scheduler.convert_to_iter_based = True
    preflight(cfg, *FIELDS)
    cfg.param_scheduler = dict(cosine, by_epoch=False)
    preflight(cfg, *FIELDS)


def test_entries_for_other_images(config):
    crd = dict(type='CRDLoss', num_samples=50, negatives=45)
    losses = [
        dict(loss=dict(type='KDLoss'), name='kd'),
        dict(loss=crd, student='feature', teacher='feature', name='crd'),
    ]
    field = 'model.losses.1.loss'
    assert refusal(config(mldr(losses=losses, neck=None))) == (
        f'{field}.num_samples=50: must be 40, the number of training images; add --cfg-options '
        f'{field}.num_samples=40 {field}.negatives=39'
    )
    crd |= dict(num_samples=40, negatives=39)
    preflight(config(mldr(losses=losses, neck=None)), *FIELDS)


def test_what_the_mistakes_are_made_in_is_right(config):
    fields = {}
    for each in NEEDED.values():
        fields |= each
    preflight(config(**fields), *FIELDS)


@pytest.mark.parametrize(
    ('loader', 'message'),
    [
        (True, 'val_dataloader=True: must be a dict'),
        (
            dict(num_workers='all'),
            "val_dataloader.num_workers='all': must be a number of processes",
        ),
    ],
)
def test_loader_that_cannot_be_completed(loader, message):
    with pytest.raises(ConfigError, match=message):
        fit_to_machine(Config(dict(val_dataloader=loader)))


def test_any_default_hook_can_be_turned_off():
    hooks = dict(timer=None, figures=None, logger=dict(type='LoggerHook'))
    cfg = Config(dict(default_hooks=hooks))
    fit_to_machine(cfg)
    assert cfg.default_hooks == dict(timer=None, logger=dict(type='LoggerHook'))


class TestSamples:
    def test_without_labels(self, config):
        cfg = config(**{'train_dataloader.dataset': dataset()})
        assert refusal(cfg).startswith('train_dataloader.dataset: image 0 has no label; load_data')

    def test_without_labels_in_a_distiller(self, config):
        """Also in a later batch, which only training reads."""
        cfg = config(mldr(), **{'train_dataloader.dataset': dataset()})
        assert 'has no label' in refusal(cfg)
        model = MODELS.build(mldr())
        cfg.train_dataloader.dataset.pop('_delete_', None)
        sample = DATASETS.build(cfg.train_dataloader.dataset)[0]
        data = dict(inputs=[sample['inputs']], data_samples=[sample['data_samples']])
        with pytest.raises(ConfigError, match='train_dataloader: image 0 has no label'):
            model.data_preprocessor(data, True)
        model.data_preprocessor(data, False)

    @pytest.mark.parametrize(
        ('files', 'first', 'message'),
        [
            (True, 'Resize', 'must begin with LoadImageFromFile for Unlabelled; if it comes from'),
            (False, 'LoadImageFromFile', 'must not begin with LoadImageFromFile for Unlabelled'),
        ],
    )
    def test_the_pipeline_of_another_data_set(self, config, files, first, message):
        step = dict(type=first, scale=8) if first == 'Resize' else dict(type=first)
        wrong = dataset(files=files, labelled=True) | dict(pipeline=[step, dict(type='PackInputs')])
        message = f'train_dataloader.dataset.pipeline: {message}'
        assert message in refusal(config(**{'train_dataloader.dataset': wrong}))
        assert '_delete_=True' in refusal(config(**{'train_dataloader.dataset': wrong}))

    def test_arguments_of_another_data_set(self, config):
        """A base's ``split`` reaches a data set that has none."""
        cfg = config(**{'train_dataloader.dataset.type': 'Unlabelled'})
        message = refusal(cfg)
        assert message.startswith('train_dataloader.dataset.')
        assert message.endswith('replace the whole dict by dict(_delete_=True, ...)')


class TestPretrained:
    def test_prefix(self, config, tmp_path):
        torch.save(MODELS.build(resnet()).state_dict(), tmp_path / 'weights.pth')
        init = dict(type='Pretrained', checkpoint=str(tmp_path / 'weights.pth'), prefix='backbon.')
        cfg = config(resnet(), **{'model.backbone.init_cfg': init})
        assert refusal(cfg).startswith('model.backbone.init_cfg')
        cfg.model.backbone.init_cfg.prefix = 'backbone.'
        preflight(cfg, *FIELDS)

    def test_missing_file(self, config):
        init = dict(type='Pretrained', checkpoint='lost.pth')
        assert 'lost.pth' in refusal(config(resnet(), **{'model.backbone.init_cfg': init}))


class TestNothingChanges:
    def test_random_numbers(self, config):
        with preserve_global_rng():
            preflight(config(mldr()), *FIELDS)
            after = random.random(), np.random.rand(), torch.rand(1).item()
        with preserve_global_rng():
            assert after == (random.random(), np.random.rand(), torch.rand(1).item())

    def test_files_and_instances(self, config, tmp_path):
        before = dict(Visualizer._instance_dict)
        cfg = config(**NEEDED['visualizer'])
        text = cfg.pretty_text
        preflight(cfg, *FIELDS)
        assert cfg.pretty_text == text
        assert dict(Visualizer._instance_dict) == before
        assert 'preflight' not in before
        assert list(tmp_path.iterdir()) == []

    def test_hooks_may_use_the_visualizer(self, config):
        hook = dict(type='VisualizationHook', enable=True)
        preflight(config(**NEEDED['visualizer'], custom_hooks=[hook]), *FIELDS)


def test_what_a_class_may_accept_is_left_alone(config):
    """Only a name that resembles a known one is refused if a class takes any."""

    @HOOKS.register_module(force=True)
    class AnyHook(Hook):
        def __init__(self, first=1, **kwargs):
            self.kwargs = kwargs

    preflight(config(custom_hooks=[dict(type='AnyHook', other=2)]), *FIELDS)
    assert 'did you mean first?' in refusal(config(custom_hooks=[dict(type='AnyHook', frst=2)]))


def test_a_dump_of_predictions_is_not_written(config, tmp_path):
    dump = dict(type='DumpResults', out_file_path=str(tmp_path / 'out.pkl'))
    preflight(config(val_evaluator=[dict(type='Accuracy', topk=1), dump]), *FIELDS)
    assert list(tmp_path.iterdir()) == []


class OwnMetric(BaseMetric):
    """Number of samples, which must be three or more."""

    def process(self, data_batch, data_samples):
        self.results += list(data_samples)

    def compute_metrics(self, results):
        torch.tensor([float(sample['pred_score'][0]) for sample in results]).topk(3)
        return dict(own=len(results))


class OwnModel(BaseModel):
    """Model without mmpretrain's samples, with a gradient in its loss or its own step."""

    def __init__(self, data_preprocessor=None):
        super().__init__(data_preprocessor)
        self.weight = torch.nn.Parameter(torch.ones(1))

    def forward(self, inputs, data_samples=None, mode='tensor'):
        outputs = inputs.float().mean((1, 2, 3)) * self.weight
        if mode != 'loss':
            return outputs
        (gradient,) = torch.autograd.grad(outputs.sum(), self.weight, create_graph=True)
        return dict(loss=gradient.square())


class OwnStep(OwnModel):
    def train_step(self, data, optim_wrapper):
        raise AssertionError('belongs to training')

    def forward(self, inputs, data_samples=None, mode='tensor'):
        assert mode != 'loss'
        return super().forward(inputs, data_samples, mode)


class OwnCount(BaseMetric):
    def process(self, data_batch, data_samples):
        self.results += list(data_samples)

    def compute_metrics(self, results):
        return dict(count=len(results))


class TwoOptimizers:
    def __init__(self, optim_wrapper_cfg, paramwise_cfg=None):
        pass

    def __call__(self, model):
        parts = [[*model.backbone.parameters()], [*model.head.parameters()]]
        wrappers = [OptimWrapper(torch.optim.SGD(part, 0.1)) for part in parts]
        return OptimWrapperDict(backbone=wrappers[0], head=wrappers[1])


class TestOwnParts:
    """What a run accepts is not refused."""

    def test_a_metric_that_needs_more_images(self, config, monkeypatch):
        texts = []
        log = 'mldr_kd_mm.engine.preflight.print_log'
        monkeypatch.setattr(log, lambda text, *_: texts.append(text))
        metrics = [dict(type='Accuracy', topk=1), dict(type=OwnMetric, prefix='own')]
        cfg = config(val_evaluator=metrics)
        best = dict(save_best='own/own', rule='greater')
        cfg.default_hooks.checkpoint = dict(type='CheckpointHook', **best)
        preflight(cfg, *FIELDS)
        assert len(texts) == 1 and texts[0].startswith('val_evaluator: not checked')

    @pytest.mark.parametrize('model', [OwnModel, OwnStep])
    def test_a_model_and_samples(self, config, model):
        cfg = config()
        cfg.model = dict(type=model)
        cfg.data_preprocessor.type = 'ClsDataPreprocessor'
        cfg.val_evaluator = dict(type=OwnCount, prefix='own')
        preflight(cfg, *FIELDS)

    def test_schedules_of_several_optimizers(self, config):
        schedule = dict(type='StepLR', step_size=1)
        cfg = config()
        cfg.optim_wrapper = dict(constructor='TwoOptimizers')
        cfg.param_scheduler = dict(backbone=schedule, head=[schedule])
        OPTIM_WRAPPER_CONSTRUCTORS.register_module(module=TwoOptimizers, force=True)
        preflight(cfg, *FIELDS)

    def test_values_of_the_config_itself(self, config):
        preflight(config(model2=dict(a=1), _model=1), *FIELDS)

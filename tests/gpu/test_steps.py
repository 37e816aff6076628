"""Training steps on the pretended GPU: no mixed devices, and no wait of the host."""

import copy
import weakref
from pathlib import Path

import pytest
import torch
from helpers import batch, mldr, resnet, vit
from mmengine.config import Config
from mmengine.optim import build_optim_wrapper
from pretended import PretendedGPU
from pretended_run import run_steps
from torch.utils.data._utils.pin_memory import pin_memory
from zoo import FAMILIES

from mldr_kd_mm.apis.configs import load_config
from mldr_kd_mm.models import losses
from mldr_kd_mm.registry import MODELS
from mldr_kd_mm.structures.label import mark_unlabeled

CONFIGS = Path(__file__).parents[2] / 'configs'
SGD = dict(optimizer=dict(type='SGD', lr=0.01, momentum=0.9, fused=True))

# Waits that are still there, by case. Each case must have exactly these.
KNOWN_WAITS: dict[str, set[str]] = {
    # Without the Runner, whose hook keeps the norm on the GPU.
    'transformer recipe': {'local_scalar_dense at optimizer/optimizer_wrapper.py:_clip_grad'},
}


def all_losses():
    """Return the arguments of a Distiller with each shipped loss."""
    method = dict(neck=None, losses=[])
    for path in sorted((CONFIGS / '_base_/methods').glob('*.py')):
        shipped = Config.fromfile(path).method.to_dict()
        known = [entry['loss']['type'] for entry in method['losses']]
        for entry in shipped.pop('losses'):
            if entry['loss']['type'] not in known:
                if entry.get('student') == 'distillation_logits':
                    entry['student'] = 'logits'  # The student has one head.
                method['losses'].append(entry | dict(name=entry['loss']['type']))
                method |= shipped
    return method


def step_of(config, optim_wrapper=SGD):
    """Return what the second step of a Distiller does."""
    with PretendedGPU() as gpu:
        torch.manual_seed(0)
        model = MODELS.build(config).to('cuda').train()
        wrapper = build_optim_wrapper(model, copy.deepcopy(optim_wrapper))
        for _ in range(2):
            data = batch(size=4)
            for number, sample in enumerate(data['data_samples']):
                sample.set_field(number, 'sample_idx', field_type='metainfo')
            data = pin_memory(data)
            gpu.start_step()
            model.train_step(data, wrapper)
    assert gpu.step.launches.total() > 100
    return gpu.step


@pytest.mark.parametrize('labelled', [[1, 2], []])
def test_images_without_labels(labelled, monkeypatch):
    """Mixed with labelled ones, with mixup and CutMix of both kinds, and alone."""

    def partly(size, batch=batch):
        data = batch(size)
        for row, sample in enumerate(data['data_samples']):
            if row not in labelled:
                del sample.gt_label
                mark_unlabeled(sample)
        return data

    monkeypatch.setitem(globals(), 'batch', partly)
    augments = [dict(type='Mixup', alpha=0.8), dict(type='CutMix', alpha=1.0)]
    student = resnet(train_cfg=dict(augments=augments))
    check('images without labels', step_of(mldr(student=student)))


def check(case, step):
    assert set(step.waits) == KNOWN_WAITS.get(case, set())


@pytest.mark.parametrize('family', FAMILIES)
def test_family(family):
    """Each family as the student and the teacher."""
    model = FAMILIES[family]
    check(family, step_of(mldr(teacher=model, student=model)))


def test_losses():
    """Each shipped loss, and the form of DFRA without relations."""
    method = all_losses()
    assert {entry['loss']['type'] for entry in method['losses']} == {*losses.__all__}
    for entry in method['losses']:
        if entry['loss']['type'] == 'CRDLoss':
            entry['loss'] |= dict(num_samples=20, negatives=6)
        if entry['loss']['type'] == 'DFRALoss':
            linear = entry | dict(loss=entry['loss'] | dict(relation='linear'), name='linear')
    method['losses'].append(linear)
    check('losses', step_of(mldr(**method)))


class PrecisionGPU(PretendedGPU):
    """Lists the precision of the products of a backward pass."""

    def __enter__(self):
        self.precisions = []
        return super().__enter__()

    def launch(self, operation, tensors):
        super().launch(operation, tensors)
        if operation in ('mm', 'bmm') and torch._C._current_autograd_node() is not None:
            self.precisions.append(torch.get_float32_matmul_precision())


@pytest.fixture
def tf32():
    torch.set_float32_matmul_precision('high')
    yield
    torch.set_float32_matmul_precision('highest')


@pytest.mark.usefixtures('tf32')
@pytest.mark.parametrize('order', [1, -1])
def test_losses_do_not_use_tf32_in_the_backward_pass(order):
    both = [losses.RKDLoss(), losses.RSDLoss(student_width=4, teacher_width=6)][::order]
    with PrecisionGPU() as gpu:
        weight = torch.randn(4, 4, device='cuda', requires_grad=True)
        teacher = torch.randn(5, 6, device='cuda')
        student = torch.randn(5, 4, device='cuda') @ weight
        is_alive = weakref.ref(student)
        total = sum(loss.to('cuda')(student, teacher) for loss in both)
        total.backward()
    *of_losses, of_student = gpu.precisions
    assert len(of_losses) >= 5
    assert set(of_losses) == {'highest'}
    assert of_student == torch.get_float32_matmul_precision() == 'high'
    del student, total
    assert is_alive() is None


def test_transformer_recipe():
    """AdamW with groups of parameters and clipped gradients; the teacher in half precision."""
    recipe = Config.fromfile(CONFIGS / '_base_/schedules/transformer_300e.py').optim_wrapper
    recipe.optimizer.fused = True
    config = mldr(student=vit(), teacher=resnet(), teacher_precision='bf16')
    check('transformer recipe', step_of(config, recipe.to_dict()))


def options(case):
    """Return what the runs below add to a config."""
    mix = dict(augments=[dict(type='Mixup', alpha=0.8), dict(type='CutMix', alpha=1.0)])
    return {
        'MLDR-KD': {},
        'AMP': {'optim_wrapper.type': 'AmpOptimWrapper', 'optim_wrapper.loss_scale': 'dynamic'},
        'mixup, clipping, EMA': {
            'model.train_cfg': mix,
            'model.head.loss.mode': 'original',
            'custom_hooks': [dict(type='EMAHook', momentum=0.01)],
        },
    }[case]


@pytest.mark.parametrize(
    ('case', 'config'),
    [
        ('MLDR-KD', 'mldr/deit_to_mobilenet_c100_32px.py'),
        ('AMP', 'teachers/deit-small_c100_32px.py'),
        ('mixup, clipping, EMA', 'teachers/deit-small_c100_32px.py'),
    ],
)
def test_run(case, config, tmp_path):
    """Iterations of the Runner with all hooks wait only when they log."""
    cfg = load_config(str(CONFIGS / config))
    cfg.merge_from_dict({'default_hooks.logger.interval': 2, **options(case)})
    with PretendedGPU() as gpu:
        *_, logs, step = run_steps(cfg, gpu, tmp_path, steps=3)
    assert logs.waits
    check(case, step)


@pytest.mark.skipif(not torch.cuda.is_available(), reason='needs a GPU')
def test_on_a_gpu():
    """The same on a real GPU, whose driver reports waits."""
    model = MODELS.build(mldr()).cuda().train()
    wrapper = build_optim_wrapper(model, SGD)
    torch.cuda.set_sync_debug_mode('error')
    try:
        for _ in range(3):
            model.train_step(pin_memory(batch(size=4)), wrapper)
    finally:
        torch.cuda.set_sync_debug_mode('default')

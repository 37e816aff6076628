"""Every shipped config is short and documented, builds, and trains a step."""

import ast
import re
from pathlib import Path

import numpy as np
import pytest
import torch
from mmengine.config import Config
from mmengine.dataset import Compose
from mmengine.optim import build_optim_wrapper
from PIL import Image

from mldr_kd_mm import list_configs
from mldr_kd_mm.apis.configs import load_config
from mldr_kd_mm.models.taps.stages import STAGES
from mldr_kd_mm.registry import MODELS

ROOT = Path(__file__).parents[1]
CONFIGS = [f'configs/{name}' for name in list_configs()]
METHODS = (
    'kd',
    'dkd',
    'dist',
    'ofa',
    'rkd',
    'cc',
    'crd',
    'fitnet',
    'ls',
    'rsd',
    'rsd_logits',
    'fbt',
    'hcd',
)
# Every pair takes a step with MLDR-KD, DeiT's recipe with its own method, and every teacher's
# architecture takes one. A student alone is the pair's student under the pair's recipe, see
# test_configs.py.
FOLDERS = ('mldr', 'deit', 'quickstart', 'teachers')
STEPPED = {
    path: None
    for path in CONFIGS
    if Path(path).parent.name in FOLDERS
    and not ('/teachers/' in path and path.endswith('_tinyimagenet.py'))
} | {path: 'mldr' for path in CONFIGS if '/pairs/' in path and '20cls' in path}
PAIRS = (
    'configs/pairs/deit_to_mobilenet_c100_32px.py',
    'configs/pairs/convnext-tiny_to_deit-tiny_c100.py',
)
WHOLE_VIT_LARGE = 'configs/mldr/vit-large_to_resnet101_c100.py'
VISION_MAMBA = 'configs/mldr/swin-tiny_to_vim-tiny_tinyimagenet.py'
# A pair of each family of students, and the widths of the student's stages.
FULL_SIZE = {
    'configs/mldr/mixer-b16_to_resnet18_c100.py': (64, 128, 256, 512),
    'configs/mldr/convnext-tiny_to_swin-pico_c100.py': (48, 96, 192, 384),
    VISION_MAMBA: (192,) * 4,
    'configs/mldr/convnext-tiny_to_deit-tiny_in1k.py': (192,) * 4,
    'configs/mldr/swin-tiny_to_resmlp-s12_in1k.py': (384,) * 4,
}
NUM_CLASSES = {
    'cifar100-20cls': 20,
    'c100': 100,
    'tinyimagenet': 200,
    'in1k': 1000,
    'quickstart': 10,
}
# Losses that each method adds to the student's own loss.
HEADS = {method: {f'loss_{method}_logits'} for method in ('kd', 'dkd', 'dist', 'ls')}
HEADS |= {method: {f'loss_{method}_feature'} for method in ('rkd', 'cc', 'crd', 'rsd')}
HEADS |= {
    'rsd_logits': {f'loss_rsd_{head}' for head in ('logits', *STAGES)},
    'fbt': {'loss_ofa_logits', 'loss_infonce_feature'},
    'deit': {'loss_deit_distillation'},
    'fitnet': {f'loss_fitnet_{stage}' for stage in STAGES},
    'hcd': {f'loss_hcd_{stage}' for stage in STAGES},
    'ofa': {f'loss_ofa_{head}' for head in ('logits', *STAGES)},
    'mldr': {f'loss_dfra_{head}' for head in ('logits', *STAGES, 'fused')},
}


def load(path, method=None):
    """Load a config with random weights; give its model the preprocessor, as the Runner does."""
    cfg = load_config(str(ROOT / path), method)
    if cfg.model.type == 'Distiller':
        cfg.model.teacher_checkpoint = None
        cfg.model.teacher.pop('pretrained', None)
    cfg.model.data_preprocessor = cfg.data_preprocessor
    return cfg


def models_of(cfg):
    """Return the configs of teacher and student, or of the model that is trained alone."""
    model = cfg.model
    return [model.teacher, model.student] if model.type == 'Distiller' else [model]


def num_classes(path):
    """Return the number of classes of the data set in the path's name."""
    words = path.replace('.', '_').replace('/', '_').split('_')
    return next(number for name, number in NUM_CLASSES.items() if name in words)


def shrink(cfg, size):
    """Reduce the image size of a config for 224 px; leave other configs unchanged."""
    crops = [step for step in cfg.train_dataloader.dataset.pipeline if step.get('scale') == 224]
    for crop in crops:
        crop.scale = size
    if crops and cfg.model.type == 'Distiller':
        cfg.model.input_size = (3, size, size)
    for model in models_of(cfg) if crops else ():
        shrink_model(model, size)


def shrink_model(model, size):
    """Reduce the image size of a model if its config fixes the size."""
    if model.type == 'ImageClassifier' and model.backbone.type == 'VisionTransformer':
        model.backbone.img_size = size
    elif model.type != 'ImageClassifier' and not model.get('model_name', '').startswith(
        ('resnet', 'regnet', 'convnext')
    ):
        model.img_size = size


def one_batch(cfg, folder):
    """Return a batch from the config's pipeline: an image of the first and of the last class."""
    pipeline = Compose(cfg.train_dataloader.dataset.pipeline)
    side = 16 if cfg.train_dataloader.dataset.type == 'mldr_kd_mm.Digits' else 64
    image = np.random.default_rng(0).integers(0, 256, (side, side, 3), dtype=np.uint8)
    Image.fromarray(image).save(folder / 'image.JPEG')
    reads = cfg.train_dataloader.dataset.pipeline[0].type == 'LoadImageFromFile'
    source = dict(img_path=str(folder / 'image.JPEG')) if reads else dict(img=image)
    labels = (0, cfg.data_preprocessor.num_classes - 1)
    items = [pipeline(dict(source, gt_label=label, sample_idx=label)) for label in labels]
    return dict(
        inputs=torch.stack([item['inputs'] for item in items]),
        data_samples=[item['data_samples'] for item in items],
    )


def train_one_step(cfg, folder, method):
    """Train a step as the Runner does; check the names of the losses and all gradients."""
    model = MODELS.build(cfg.model)
    wrapper = build_optim_wrapper(model, cfg.optim_wrapper)
    reached = set()
    for name, parameter in model.named_parameters():
        parameter.register_post_accumulate_grad_hook(lambda _, name=name: reached.add(name))
    batch = one_batch(cfg, folder)
    if 'input_size' in cfg.model:
        assert batch['inputs'].shape == (2, *cfg.model.input_size)
    losses = model.train_step(batch, wrapper)
    assert all(value.isfinite() for value in losses.values())
    heads = HEADS.get(method, set()) | (
        {'loss_student'} if cfg.model.type == 'Distiller' else set()
    )
    assert {name for name in losses if 'loss_' in name} == heads
    # DistributedDataParallel waits for each gradient.
    assert reached == {name for name, _ in model.named_parameters()}
    with torch.no_grad():
        logits = model.eval()(batch['inputs'].float(), mode='tensor')
    logits = logits[-1] if isinstance(logits, (tuple, list)) else logits
    return model, logits


def test_docstring_has_the_launch_command(subtests):
    for path in CONFIGS:
        with subtests.test(path):
            docstring = ast.get_docstring(ast.parse((ROOT / path).read_text()))
            (command,) = re.findall(r'^    (?:python|bash) (tools/.*)$', docstring, re.MULTILINE)
            assert command.split()[1] == path
            assert ('--method' in docstring) == ('/pairs/' in path)


def test_has_the_classes_of_its_data(subtests):
    for path in (path for path in CONFIGS if '/mldr/' not in path):
        with subtests.test(path):
            cfg = Config.fromfile(ROOT / path)
            assert cfg.data_preprocessor.num_classes == num_classes(path)
            for model in models_of(cfg):
                assert model.get('head', model).num_classes == num_classes(path)


def train_a_step(path, method, folder):
    cfg = load(path, method)
    shrink(cfg, 64)
    for model in models_of(cfg):
        if model.get('model_name', '').startswith('vit_large') and path != WHOLE_VIT_LARGE:
            model.depth = 4  # of 24: its 304 M parameters are built once
    distils = 'deit' if '/deit/' in path else 'mldr' if '/mldr' in path else method
    _, logits = train_one_step(cfg, folder, distils)
    assert logits.shape[-1] == num_classes(path)


def is_slow(path):
    """Return whether a step takes long, or has models that other configs have, too."""
    slow = (WHOLE_VIT_LARGE, 'configs/mldr/swin-tiny_to_vim-tiny_c100.py')
    return path in slow or path.endswith('_tinyimagenet.py')


@pytest.mark.parametrize(
    ('path', 'method'),
    [pytest.param(*step, marks=[pytest.mark.slow] * is_slow(step[0])) for step in STEPPED.items()],
    ids=STEPPED,
)
def test_trains_a_step(path, method, tmp_path):
    train_a_step(path, method, tmp_path)


@pytest.mark.parametrize('pair', PAIRS)
@pytest.mark.parametrize('method', METHODS)
def test_method_trains_a_step(pair, method, tmp_path):
    train_a_step(pair, method, tmp_path)


@pytest.mark.parametrize(
    ('path', 'widths'),
    [
        pytest.param(*case, marks=[pytest.mark.slow] * (case[0] == VISION_MAMBA))
        for case in FULL_SIZE.items()
    ],
    ids=FULL_SIZE,
)
def test_trains_a_step_at_full_size(path, widths, tmp_path):
    cfg = load(path)
    assert cfg.model.input_size == (3, 224, 224)
    model, logits = train_one_step(cfg, tmp_path, 'mldr')
    assert logits.shape[-1] == num_classes(path)
    assert model.neck.in_channels == widths

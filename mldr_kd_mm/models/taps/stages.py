"""Find the taps of a classifier's logits, penultimate feature and stages.

A tap is the dotted path of a module whose output is recorded. The suffix ``:input`` selects the
module's first input instead, and ``:1`` the second of several output tensors.
"""

from __future__ import annotations

import logging
import re
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from mmengine.logging import print_log
from mmpretrain.models import HuggingFaceClassifier, ImageClassifier, TimmClassifier
from torch import Tensor, nn

from mldr_kd_mm.models.taps.layout import Layout, TokenInfo, find_layout, tensors_of
from mldr_kd_mm.utils.errors import ConfigError, named

NUM_STAGES = 4
STAGES = tuple(f'stage{i + 1}' for i in range(NUM_STAGES))
INPUT = ':input'
DISTILLATION_LOGITS = 'distillation_logits'
"""Logits (B, C) of the second head of a student with a distillation token, as DeiT's."""
VECTORS = ('logits', DISTILLATION_LOGITS, 'feature')
"""Tensors (B, C) of a model as a whole."""
WRAPPERS = (TimmClassifier, HuggingFaceClassifier)
"""Classifiers around ``model``, a module of another library, whose names their checkpoints have."""

# OFA-KD (ofa/models) taps the ends of blocks 1, 3, 9 and 11 of 12, counted from 0.
_BLOCK_ENDS, _DEPTH = (2, 4, 10, 12), 12

# Names that timm and mmpretrain give to modules that precede a stage.
_BEFORE = ('stem', 'patch_embed', 'downsample', 'transition')


def logits_tap(model: nn.Module) -> str:
    """Return the path of the module whose output is the model's logits (B, C)."""
    if isinstance(model, TimmClassifier):
        return 'model'
    if isinstance(model, ImageClassifier):
        return 'head'
    return ''


def has_head(model: nn.Module) -> bool:
    """Return whether a classifier gives logits, rather than a feature.

    These have no head: an ImageClassifier with ``head=None``, a model of timm with
    ``num_classes=0``, and a ModuleClassifier with ``has_head=False``.
    """
    if isinstance(model, ImageClassifier):
        return model.with_head
    if isinstance(model, TimmClassifier):
        return getattr(model, 'has_head', getattr(model.model, 'num_classes', None) != 0)
    return True


def feature_tap(model: nn.Module) -> str:
    """Return the tap of the penultimate feature (B, D), the input of the last linear layer.

    Without a linear layer, as in SqueezeNet, it is that of a last 1 x 1 convolution. The feature of
    a model without a head is its output; of an ImageClassifier that of its neck, or of its
    backbone.

    Raises:
        ConfigError: If the model has a head, but neither of these layers.
    """
    if isinstance(model, ImageClassifier) and not model.with_head:
        return 'neck' if model.with_neck else 'backbone'
    prefix = logits_tap(model)
    if not has_head(model):
        return prefix
    if isinstance(model, TimmClassifier) and hasattr(model.model, 'get_classifier'):
        classifier = model.model.get_classifier()
        # A distilled DeiT has two classifiers, which read tokens of the same width.
        linears = [classifier[0] if isinstance(classifier, tuple) else classifier]
    else:
        modules = list(model.get_submodule(prefix).modules())
        linears = [module for module in modules if isinstance(module, nn.Linear)]
        convolutions = [module for module in modules if isinstance(module, nn.Conv2d)]
        if not linears and convolutions and convolutions[-1].kernel_size == (1, 1):
            linears = convolutions
    paths = [path for path, module in model.named_modules() if linears and module is linears[-1]]
    if not paths:
        raise ConfigError(
            f'taps: no last linear layer found in {_describe(model)}; name the tap of the '
            f"penultimate feature, as in taps=dict(feature='{prefix or 'head'}.fc:input')"
        )
    return paths[0] + INPUT


def distillation_tap(model: nn.Module) -> str | None:
    """Return the path of the distillation head of a timm model; None for other models.

    DeiT, LeViT, EfficientFormer, RepViT and SwiftFormer have one. Their prediction is the mean of
    both heads.
    """
    if not isinstance(model, TimmClassifier) or not has_head(model):
        return None
    if not hasattr(model.model, 'set_distilled_training'):
        return None
    paths = [path for path, _ in model.named_modules() if path.endswith('_dist')]
    return paths[0] if len(paths) == 1 else None


def stage_taps(model: nn.Module, input_size: Sequence[int] | None = None) -> dict[str, str]:
    """Find the four stages of a model by running it once on an empty image.

    - timm models: the last four stages of timm's ``feature_info``. EfficientNet-like models use
      their last convolution instead of the last stage (OFA-KD's taps).
    - Other models: the last module that gives a map or tokens at each of the four lowest
      resolutions. These are the residual stages of ResNet and ConvNeXt, the ends of Swin's stages
      before downsampling, and MobileNetV2's stages with 24, 32 and 96 channels and its last
      convolution (OFA-KD's taps).
    - Models with one resolution throughout: blocks 1, 3, 9 and 11 of 12, scaled to the depth of
      the model, before the final norm (OFA-KD's taps).

    A model with fewer stages yields fewer taps, with a warning in the log.

    Args:
        model: The model.
        input_size: (3, H, W) of its images. None: the size that its config fixes, or 224 x 224.

    Returns:
        ``stage1`` ... ``stage4`` -> tap.

    Raises:
        ConfigError: If no stages are found, the backbone's ``out_indices`` cut off the logits, or
            the model does not run on an image of this size.
    """
    shape = tuple(input_size or (3, *(fixed_size(model) or (224, 224))))
    prefix, inner = _inner(model)
    _check_out_indices(inner)
    taps = _known_to_timm(model, shape)
    for main_part in () if taps else (False, True):
        paths = [prefix + path for path in _parts(inner, _size(inner) / 2 if main_part else None)]
        found = _last_of_each_grid(_run(model, paths, shape))
        taps = max(taps, found, key=len)
        if len(taps) == NUM_STAGES:
            break
    if not taps:
        raise ConfigError(_no_stages(model))
    if len(taps) < NUM_STAGES:
        print_log(
            f"taps='stages': {_describe(model)} has {len(taps)}: {', '.join(taps)}",
            'current',
            logging.WARNING,
        )
    return dict(zip(STAGES, taps, strict=False))


def tap_layout(model: nn.Module, feature: Tensor, image_size: tuple[int, int]) -> Layout | None:
    """Return the layout of a recorded tensor, or None if it is neither a map nor tokens.

    Args:
        model: The model that the tensor comes from.
        feature: The recorded tensor.
        image_size: (H, W) of the image.
    """
    return find_layout(feature.shape, image_size, _token_info(model))


def stage_layout(
    model: nn.Module, name: str, feature: Tensor, image_size: tuple[int, int]
) -> Layout:
    """Return the layout of a recorded stage.

    Args:
        model: The model that the feature comes from.
        name: Name of the stage, for the error message.
        feature: The recorded tensor.
        image_size: (H, W) of the image.

    Raises:
        ConfigError: If the feature is neither a map nor tokens.
    """
    layout = tap_layout(model, feature, image_size)
    if layout is None:
        raise ConfigError(
            f'taps: {name} of {_describe(model)} has shape {tuple(feature.shape)}: must be a map '
            '(B, C, H, W) or (B, H, W, C), or tokens (B, N, C) or (B, C, N), with the aspect ratio '
            f'of the image, {image_size[0]} x {image_size[1]}'
        )
    return layout


def stage_names(names: Iterable[str]) -> list[str]:
    """Select the names of stages, ``stage1``, ``stage2``, ..., from the first to the last."""
    found = [name for name in names if re.fullmatch(r'stage\d+', name)]
    return sorted(found, key=lambda name: int(name.removeprefix('stage')))


@contextmanager
def evaluation_mode(model: nn.Module) -> Iterator[None]:
    """Put a model into evaluation mode, and every module back into its own mode afterwards."""
    modes = {module: module.training for module in model.modules()}
    try:
        # Some modules of mmpretrain prepare themselves in eval() and train().
        model.eval()
        yield
    finally:
        model.train(modes[model])
        for module, training in modes.items():
            module.training = training


def fixed_size(model: nn.Module) -> tuple[int, int] | None:
    """Return the image size (H, W) that the model's config fixes, or None if it takes any size."""
    inner = _inner(model)[1]
    # timm's ViTs embed patches in `patch_embed`, its MLPs in `stem`.
    for holder in (inner, *(getattr(inner, name, None) for name in ('patch_embed', 'stem'))):
        size = getattr(holder, 'img_size', None)
        if size is not None:
            return (size, size) if isinstance(size, int) else tuple(size)
    return None


def _inner(model: nn.Module) -> tuple[str, nn.Module]:
    """Return the part of a classifier that contains the stages, and the prefix of its paths."""
    if isinstance(model, WRAPPERS):
        return 'model.', model.model
    backbone = getattr(model, 'backbone', None)
    return ('', model) if backbone is None else ('backbone.', backbone)


def _known_to_timm(model: nn.Module, shape: tuple[int, ...]) -> list[str]:
    """Return the stages of timm's ``feature_info``, or nothing if one of them does not run."""
    if not isinstance(model, TimmClassifier):
        return []
    paths = ['model.' + path for path in _timm_paths(model.model)]
    modules = dict(model.named_modules())
    # A few families, such as Twins, list names that their modules do not have.
    layouts = _run(model, [path for path in paths if path in modules], shape)
    # If a module gives several tensors, the map comes first (EfficientViM, PiT).
    taps = [path if path in layouts else f'{path}:0' for path in paths]
    return taps if all(tap in layouts for tap in taps) else []


def _timm_paths(model: nn.Module) -> list[str]:
    infos = list(getattr(model, 'feature_info', None) or [])
    paths = list(dict.fromkeys(info['module'] for info in infos))
    if len({info['reduction'] for info in infos}) == 1:
        return _spread(paths)
    paths = paths[-NUM_STAGES:]
    # EfficientNet-like models have a wider convolution after their last stage; OFA-KD taps that.
    if paths and hasattr(model, 'conv_head') and hasattr(model, 'bn2'):
        paths[-1] = 'bn2'
    return paths


def _parts(module: nn.Module, half: float | None, prefix: str = '') -> Iterator[str]:
    """Yield the modules that may end a stage: containers and blocks, not the parts of a block.

    Args:
        module: The model or a part of it.
        half: Half of the number of parameters of the model. A part with more, such as the encoder
            of a model of transformers, is taken for a container. None: it is not.
        prefix: Path of the module.
    """
    for name, child in module.named_children():
        if name.startswith(_BEFORE) or _keeps_the_stage(child):
            continue
        is_list = isinstance(child, (nn.Sequential, nn.ModuleList)) or hasattr(child, 'blocks')
        if is_list or (half is not None and _size(child) > half):
            yield from _parts(child, half, f'{prefix}{name}.')
        yield prefix + name


def _size(module: nn.Module) -> int:
    """Return the number of parameters."""
    return sum(parameter.numel() for parameter in module.parameters())


def _keeps_the_stage(module: nn.Module) -> bool:
    """Return whether a module only normalises or pools the output of a stage."""
    pools = (nn.AdaptiveAvgPool1d, nn.AdaptiveAvgPool2d, nn.AdaptiveMaxPool2d)
    return isinstance(module, (nn.Identity, nn.Dropout, *pools)) or 'Norm' in type(module).__name__


def _last_of_each_grid(layouts: dict[str, Layout]) -> list[str]:
    """Return the last taps of the four lowest resolutions, from the highest to the lowest."""
    last = {layout.grid: tap for tap, layout in layouts.items()}
    if len(last) == 1:
        return _spread(_longest_column(layouts))
    return [last[grid] for grid in sorted(last, reverse=True)[-NUM_STAGES:]]


def _longest_column(taps: Iterable[str]) -> list[str]:
    """Return the blocks of the longest container."""
    columns: dict[tuple[str, str], list[str]] = {}
    for tap in taps:
        path, _, item = tap.partition(':')
        columns.setdefault((path.rpartition('.')[0], item), []).append(tap)
    return max(columns.values(), key=len)


def _spread(blocks: list[str]) -> list[str]:
    """Select four of the blocks of a model that has no stages of its own."""
    depth = len(blocks)
    count = min(depth, NUM_STAGES)
    ends = (
        min(max(round(end * depth / _DEPTH), i + 1), depth - (count - 1 - i))
        for i, end in enumerate(_BLOCK_ENDS[-count:] if count else ())
    )
    return [blocks[end - 1] for end in ends]


@torch.no_grad()
def _run(model: nn.Module, paths: Sequence[str], shape: tuple[int, ...]) -> dict[str, Layout]:
    """Run a model on one empty image.

    Args:
        model: The model.
        paths: Paths of the modules to record.
        shape: (3, H, W) of the image.

    Returns:
        Tap -> layout of the modules' outputs in their last call, in the order in which the modules
        finished. Outputs that are neither a map nor tokens, or that were changed in place later,
        are left out.
    """
    outputs: dict[str, tuple[Tensor, int]] = {}

    def keep(path: str, output: Any) -> None:
        tensors = tensors_of(output)
        names = [path] if len(tensors) == 1 else [f'{path}:{i}' for i in range(len(tensors))]
        for name, tensor in zip(names, tensors, strict=True):
            outputs.pop(name, None)
            outputs[name] = tensor, tensor._version

    handles = [
        model.get_submodule(path).register_forward_hook(
            lambda _, args, output, path=path: keep(path, output)
        )
        for path in dict.fromkeys(paths)
    ]
    parameter = next(model.parameters())
    image = torch.zeros(1, *shape, device=parameter.device, dtype=parameter.dtype)
    try:
        with (
            named(f'input_size={shape}: {_describe(model)} does not run on an image of this size'),
            evaluation_mode(model),
        ):
            model(image)
    finally:
        for handle in handles:
            handle.remove()
    info = _token_info(model)
    layouts = {
        tap: find_layout(tensor.shape, shape[1:], info)
        for tap, (tensor, version) in outputs.items()
        if len(tensor) == 1 and tensor._version == version
    }
    return {tap: layout for tap, layout in layouts.items() if layout is not None}


def _token_info(model: nn.Module) -> TokenInfo:
    """Return what a model declares about the tokens that are not part of its grid."""
    inner = _inner(model)[1]
    for name in ('num_prefix_tokens', 'num_extra_tokens'):  # timm's and mmpretrain's names
        num_prefix = getattr(inner, name, None)
        if num_prefix is not None:
            has_class_token = getattr(inner, 'cls_token', None) is not None
            # Vision Mamba's class token is in the middle.
            index = getattr(inner, 'class_token_index', 0)
            return TokenInfo(num_prefix, index if has_class_token else None)
    return TokenInfo()


def _check_out_indices(backbone: nn.Module) -> None:
    """Refuse ``out_indices`` that cut off parts of the backbone from the logits."""
    indices = getattr(backbone, 'out_indices', None)
    depth = getattr(backbone, 'num_stages', None) or getattr(backbone, 'num_layers', None)
    if not isinstance(indices, (tuple, list)) or not isinstance(depth, int):
        return
    if max(indices) >= depth:
        return  # A few backbones count blocks, not stages.
    *others, last = sorted(index % depth for index in indices)
    if last < depth - 1 or any(f'norm{index}' in backbone._modules for index in others):
        raise ConfigError(
            f'out_indices={tuple(indices)}: must be the last stage, {depth - 1}, alone; taps need '
            'no outputs, and parts that the head does not read are not trained'
        )


def _describe(model: nn.Module) -> str:
    inner = _inner(model)[1]
    name = type(model).__name__
    return f'{name}({type(inner).__name__})' if inner is not model else name


def _no_stages(model: nn.Module) -> str:
    """Return the message for a model without stages, with a list of its modules."""
    prefix, inner = _inner(model)
    tree = [
        f'    {path}: {type(module).__name__}'
        for path, module in inner.named_modules(prefix=prefix.removesuffix('.'))
        if path and path.count('.') < prefix.count('.') + 2
    ]
    return '\n'.join(
        [
            f"taps='stages': no stages found in {_describe(model)}; name them, as in "
            f"taps=dict(stage1='{prefix}layer1', stage2=..., stage3=..., stage4=...); available:",
            *tree,
        ]
    )

"""Where a classifier's logits, penultimate feature and four stages are found.

A tap is the dotted path of a module whose output is recorded. With ``:input`` after it the module's
first input is, with ``:1`` the second of several tensors that it gives. Everything here maps a
model to such taps, and knows no losses.
"""

from __future__ import annotations

import logging
from collections.abc import Iterable, Iterator, Sequence
from typing import Any

import torch
from mmengine.logging import print_log
from mmpretrain.models import ImageClassifier, TimmClassifier
from torch import Tensor, nn

from mldr_kd_mm.models.taps.layout import Layout, TokenInfo, find_layout, tensors_of
from mldr_kd_mm.utils.errors import ConfigError, named

NUM_STAGES = 4
STAGES = tuple(f'stage{i + 1}' for i in range(NUM_STAGES))
INPUT = ':input'

# OFA-KD's choice (ofa/models): ends of the blocks 1, 3, 9 and 11 of 12, counted from 0.
_BLOCK_ENDS, _DEPTH = (2, 4, 10, 12), 12

# What comes before a stage, by the names that timm and mmpretrain give it.
_BEFORE = ('stem', 'patch_embed', 'downsample', 'transition')


def logits_tap(model: nn.Module) -> str:
    """The module whose output is the model's logits."""
    if isinstance(model, TimmClassifier):
        return 'model'
    if isinstance(model, ImageClassifier):
        return 'head'
    return ''


def feature_tap(model: nn.Module) -> str:
    """The input of the last linear layer, the penultimate feature (B, D).

    Raises:
        ConfigError: If the model has no such layer.
    """
    prefix = logits_tap(model)
    if isinstance(model, TimmClassifier):
        classifier = model.model.get_classifier()
        # A distilled DeiT has two; they read tokens of the same width.
        linears = [classifier[0] if isinstance(classifier, tuple) else classifier]
    else:
        linears = [m for m in model.get_submodule(prefix).modules() if isinstance(m, nn.Linear)]
    paths = [path for path, module in model.named_modules() if linears and module is linears[-1]]
    if not paths:
        raise ConfigError(
            f'taps: no last linear layer found in {_describe(model)}: name the penultimate '
            f"feature, as in taps=dict(feature='{prefix or 'head'}.fc:input')"
        )
    return paths[0] + INPUT


def stage_taps(model: nn.Module, input_size: Sequence[int] | None = None) -> dict[str, str]:
    """The four stages of a model, found by running it once on an empty image.

    - timm's models: the last four stages of timm's ``feature_info``, but for the efficient nets
      their last convolution instead of the last stage (OFA-KD's taps);
    - any other: the last modules to give a map or tokens of each of the four lowest resolutions.
      These are the residual stages of ResNet and ConvNeXt; of Swin the ends of its stages, before
      they are downsampled; of MobileNetV2 its stages of 24, 32 and 96 channels and its last
      convolution (OFA-KD's taps);
    - where all is of one resolution: the blocks 1, 3, 9 and 11 of 12, scaled to other depths,
      before the final norm (OFA-KD's taps).

    A model of fewer stages gives what there is, and the log says so.

    Args:
        model: The model.
        input_size: (3, H, W) of its images. None: what its config fixes, else 224 x 224.

    Returns:
        ``stage1`` ... ``stage4`` -> tap.

    Raises:
        ConfigError: If no stages are found, the backbone's ``out_indices`` are in the way, or the
            model does not run on such an image.
    """
    shape = tuple(input_size or (3, *(fixed_size(model) or (224, 224))))
    prefix, inner = _inner(model)
    _check_out_indices(inner)
    taps = _known_to_timm(model, shape) or _last_of_each_grid(
        _run(model, [prefix + path for path in _parts(inner)], shape)
    )
    if not taps:
        raise ConfigError(_no_stages(model))
    if len(taps) < NUM_STAGES:
        print_log(
            f"taps='stages': {_describe(model)} has {len(taps)}: {', '.join(taps)}",
            'current',
            logging.WARNING,
        )
    return dict(zip(STAGES, taps, strict=False))


def stage_layout(
    model: nn.Module, name: str, feature: Tensor, image_size: tuple[int, int]
) -> Layout:
    """How a recorded stage of a model lies in its tensor.

    Args:
        model: The model that it was recorded of.
        name: Its name, for the error.
        feature: What was recorded.
        image_size: (H, W) of the image.

    Raises:
        ConfigError: If the feature is neither a map nor tokens.
    """
    layout = find_layout(feature.shape, image_size, _token_info(model))
    if layout is None:
        raise ConfigError(
            f'taps: {name} of {_describe(model)} has the shape {tuple(feature.shape)}: must be a '
            'map (B, C, H, W) or (B, H, W, C), or tokens (B, N, C) or (B, C, N), whose grid has '
            f'the proportions of the image, {image_size[0]} x {image_size[1]}'
        )
    return layout


def fixed_size(model: nn.Module) -> tuple[int, int] | None:
    """The (H, W) that the model's config fixes, or None where the model takes any."""
    inner = _inner(model)[1]
    # timm's ViTs embed patches in `patch_embed`, its MLPs in `stem`.
    for holder in (inner, *(getattr(inner, name, None) for name in ('patch_embed', 'stem'))):
        size = getattr(holder, 'img_size', None)
        if size is not None:
            return (size, size) if isinstance(size, int) else tuple(size)
    return None


def _inner(model: nn.Module) -> tuple[str, nn.Module]:
    """The part of a classifier that has the stages, and the prefix of its paths."""
    if isinstance(model, TimmClassifier):
        return 'model.', model.model
    backbone = getattr(model, 'backbone', None)
    return ('', model) if backbone is None else ('backbone.', backbone)


def _known_to_timm(model: nn.Module, shape: tuple[int, ...]) -> list[str]:
    """The stages of timm's ``feature_info``; none where it has none that run."""
    if not isinstance(model, TimmClassifier):
        return []
    paths = ['model.' + path for path in _timm_paths(model.model)]
    modules = dict(model.named_modules())
    # A few families, such as Twins, are listed under names that they do not have.
    layouts = _run(model, [path for path in paths if path in modules], shape)
    # Of several tensors the map comes first (EfficientViM, PiT).
    taps = [path if path in layouts else f'{path}:0' for path in paths]
    return taps if all(tap in layouts for tap in taps) else []


def _timm_paths(model: nn.Module) -> list[str]:
    infos = list(getattr(model, 'feature_info', None) or [])
    paths = list(dict.fromkeys(info['module'] for info in infos))
    if len({info['reduction'] for info in infos}) == 1:
        return _spread(paths)
    paths = paths[-NUM_STAGES:]
    # The efficient nets widen once more after their last stage, which OFA-KD taps instead of it.
    if paths and hasattr(model, 'conv_head') and hasattr(model, 'bn2'):
        paths[-1] = 'bn2'
    return paths


def _parts(module: nn.Module, prefix: str = '') -> Iterator[str]:
    """The modules that may end a stage: parts of a backbone, without the insides of its blocks."""
    for name, child in module.named_children():
        if name.startswith(_BEFORE) or _keeps_the_stage(child):
            continue
        if isinstance(child, (nn.Sequential, nn.ModuleList)) or hasattr(child, 'blocks'):
            yield from _parts(child, f'{prefix}{name}.')
        yield prefix + name


def _keeps_the_stage(module: nn.Module) -> bool:
    """Whether a module only norms or pools what a stage gave."""
    pools = (nn.AdaptiveAvgPool1d, nn.AdaptiveAvgPool2d, nn.AdaptiveMaxPool2d)
    return isinstance(module, (nn.Identity, nn.Dropout, *pools)) or 'Norm' in type(module).__name__


def _last_of_each_grid(layouts: dict[str, Layout]) -> list[str]:
    """The ends of the four lowest resolutions, from the highest to the lowest."""
    last = {layout.grid: tap for tap, layout in layouts.items()}
    if len(last) == 1:
        return _spread(_longest_column(layouts))
    return [last[grid] for grid in sorted(last, reverse=True)[-NUM_STAGES:]]


def _longest_column(taps: Iterable[str]) -> list[str]:
    """The blocks of that container which has the most."""
    columns: dict[tuple[str, str], list[str]] = {}
    for tap in taps:
        path, _, item = tap.partition(':')
        columns.setdefault((path.rpartition('.')[0], item), []).append(tap)
    return max(columns.values(), key=len)


def _spread(blocks: list[str]) -> list[str]:
    """Four of the blocks of a model without stages of its own."""
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
        paths: Of the modules to look at.
        shape: (3, H, W) of the image.

    Returns:
        Tap -> layout of what these modules gave in their last call, in the order in which they
        ended. What is neither a map nor tokens, or was changed in place later, is left out.
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
    modes = {module: module.training for module in model.modules()}
    try:
        with named(f'input_size={shape}: {_describe(model)} does not run on such an image'):
            # Some modules of mmpretrain prepare themselves in eval() and train().
            model.eval()
            model(torch.zeros(1, *shape, device=parameter.device, dtype=parameter.dtype))
    finally:
        model.train(modes[model])
        for module, training in modes.items():
            module.training = training
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
    """What a model says of the tokens beside its grid."""
    inner = _inner(model)[1]
    for name in ('num_prefix_tokens', 'num_extra_tokens'):  # timm's and mmpretrain's names
        num_prefix = getattr(inner, name, None)
        if num_prefix is not None:
            has_class_token = getattr(inner, 'cls_token', None) is not None
            # Vision Mamba's stands in the middle.
            index = getattr(inner, 'class_token_index', 0)
            return TokenInfo(num_prefix, index if has_class_token else None)
    return TokenInfo()


def _check_out_indices(backbone: nn.Module) -> None:
    """Refuse outputs that leave parts of the backbone out of the way to the logits."""
    indices = getattr(backbone, 'out_indices', None)
    depth = getattr(backbone, 'num_stages', None) or getattr(backbone, 'num_layers', None)
    if not isinstance(indices, (tuple, list)) or not isinstance(depth, int):
        return
    if max(indices) >= depth:
        return  # a few backbones count blocks, not stages
    *others, last = sorted(index % depth for index in indices)
    if last < depth - 1 or any(f'norm{index}' in backbone._modules for index in others):
        raise ConfigError(
            f'out_indices={tuple(indices)}: must be the last stage, {depth - 1}, alone: taps need '
            'no outputs, and what the head does not read is not trained by its loss'
        )


def _describe(model: nn.Module) -> str:
    inner = _inner(model)[1]
    name = type(model).__name__
    return f'{name}({type(inner).__name__})' if inner is not model else name


def _no_stages(model: nn.Module) -> str:
    """What to write where no stages are found, and the modules that there are to choose from."""
    prefix, inner = _inner(model)
    tree = [
        f'    {path}: {type(module).__name__}'
        for path, module in inner.named_modules(prefix=prefix.removesuffix('.'))
        if path and path.count('.') < prefix.count('.') + 2
    ]
    return '\n'.join(
        [
            f"taps='stages': no stages are found in {_describe(model)}: name them, as in "
            f"taps=dict(stage1='{prefix}layer1', stage2=..., stage3=..., stage4=...); there are:",
            *tree,
        ]
    )

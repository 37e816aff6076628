"""Where a classifier's logits, penultimate feature and four stages are found.

A tap is the dotted path of a module whose output is recorded, or, with ``:input`` after it, whose
first input is. Everything here maps a model to such taps and knows neither hooks nor losses.
"""

from __future__ import annotations

from mmpretrain.models import (
    ImageClassifier,
    MobileNetV2,
    ResNet,
    TimmClassifier,
    VisionTransformer,
)
from torch import nn

from mldr_kd_mm.errors import ConfigError

NUM_STAGES = 4
STAGES = tuple(f'stage{i + 1}' for i in range(NUM_STAGES))
INPUT = ':input'

# OFA-KD's choice (ofa/models): ends of the blocks 1, 3, 9 and 11 of 12, counted from 0.
_BLOCK_ENDS, _DEPTH = (2, 4, 10, 12), 12


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


def stage_taps(model: nn.Module) -> dict[str, str]:
    """The four stages of a model of a known family.

    - ResNet: the ends of its four residual stages;
    - MobileNetV2: the ends of its stages of 24, 32 and 96 channels, and the last convolution
      (OFA-KD's taps: blocks 2, 5, 12 and conv_head of timm's);
    - VisionTransformer: the blocks 1, 3, 9 and 11 of 12, scaled to other depths, before the final
      norm (OFA-KD's taps);
    - TimmClassifier: the last four stages of timm's ``feature_info``.

    Returns:
        ``stage1`` ... ``stage4`` -> tap.

    Raises:
        ConfigError: If the family is not known, or the model has fewer than four stages.
    """
    if isinstance(model, TimmClassifier):
        prefix, paths = 'model', _timm_stages(model.model)
    else:
        prefix, paths = 'backbone', _mmpretrain_stages(getattr(model, 'backbone', None))
    if len(paths) != NUM_STAGES:
        raise ConfigError(
            f"taps='stages': the stages of {_describe(model)} are not known: name them, as in "
            f"taps=dict(stage1='{prefix}.layer1', stage2=..., stage3=..., stage4=...)"
        )
    return {stage: f'{prefix}.{path}' for stage, path in zip(STAGES, paths, strict=True)}


def input_size(model: nn.Module) -> tuple[int, int] | None:
    """The (H, W) that the model's config fixes, or None where the model takes any."""
    if isinstance(model, TimmClassifier):
        # timm's ViTs embed patches in `patch_embed`, its MLPs in `stem`.
        holders = [getattr(model.model, name, None) for name in ('patch_embed', 'stem')]
    else:
        holders = [getattr(model, 'backbone', None)]
    for holder in holders:
        size = getattr(holder, 'img_size', None)
        if size is not None:
            return (size, size) if isinstance(size, int) else tuple(size)
    return None


def _mmpretrain_stages(backbone: nn.Module | None) -> list[str]:
    if isinstance(backbone, ResNet):
        return list(backbone.res_layers)
    if isinstance(backbone, MobileNetV2):
        return ['layer2', 'layer3', 'layer5', 'conv2']
    if isinstance(backbone, VisionTransformer):
        return _spread([f'layers.{i}' for i in range(len(backbone.layers))])
    return []


def _timm_stages(model: nn.Module) -> list[str]:
    infos = list(getattr(model, 'feature_info', None) or [])
    paths = [info['module'] for info in infos]
    if len({info['reduction'] for info in infos}) == 1:
        return _spread(paths)
    paths = paths[-NUM_STAGES:]
    # The efficient nets widen once more after their last stage, which OFA-KD taps instead of it.
    if paths and hasattr(model, 'conv_head') and hasattr(model, 'bn2'):
        paths[-1] = 'bn2'
    return paths


def _spread(blocks: list[str]) -> list[str]:
    """Four of the blocks of a model without stages of its own."""
    depth = len(blocks)
    if depth < NUM_STAGES:
        return []
    ends = (
        min(max(round(end * depth / _DEPTH), i + 1), depth - (NUM_STAGES - 1 - i))
        for i, end in enumerate(_BLOCK_ENDS)
    )
    return [blocks[end - 1] for end in ends]


def _describe(model: nn.Module) -> str:
    inner = getattr(model, 'backbone', None) or getattr(model, 'model', None)
    name = type(model).__name__
    return f'{name}({type(inner).__name__})' if inner is not None else name

"""Models of every family, small enough to train a step of each on a CPU.

They also generate the tables of docs/architectures.md:

    python tests/zoo.py
"""

from __future__ import annotations

from pathlib import Path

import torch
from mmengine.registry import init_default_scope

from mldr_kd_mm import FeatureRecorder
from mldr_kd_mm.models.taps.stages import evaluation_mode, stage_layout
from mldr_kd_mm.registry import MODELS

NUM_CLASSES = 10
_BEGIN, _END = '<!-- tables: python tests/zoo.py -->', '<!-- end of tables -->'


def image_classifier(width: int, head: str = 'LinearClsHead', pool: bool = True, **backbone):
    """Return the config of an mmpretrain classifier."""
    config = dict(
        type='ImageClassifier',
        backbone=backbone,
        head=dict(type=head, num_classes=NUM_CLASSES, in_channels=width),
    )
    if pool:  # MlpMixer's tokens come last
        dim = 1 if backbone['type'] == 'MlpMixer' else 2
        config['neck'] = dict(type='GlobalAveragePooling', dim=dim)
    return config


def timm(model_name: str, **kwargs) -> dict:
    """Return the config of a timm classifier."""
    return dict(type='TimmClassifier', model_name=model_name, num_classes=NUM_CLASSES, **kwargs)


# One of each family, for 32 px.
FAMILIES = {
    'CNN': image_classifier(64, type='ResNet_CIFAR', depth=18, base_channels=8, stem_channels=8),
    'Transformer': image_classifier(
        32,
        head='VisionTransformerClsHead',
        pool=False,
        type='VisionTransformer',
        arch=dict(embed_dims=32, num_layers=4, num_heads=2, feedforward_channels=64),
        img_size=32,
        patch_size=8,
    ),
    'MLP': image_classifier(
        32,
        type='MlpMixer',
        arch=dict(embed_dims=32, num_layers=4, tokens_mlp_dims=16, channels_mlp_dims=64),
        img_size=32,
        patch_size=8,
    ),
    'Mamba': dict(
        type='VisionMamba',
        img_size=32,
        patch_size=8,
        embed_dim=32,
        depth=4,
        num_classes=NUM_CLASSES,
    ),
}

# timm models: what is special about each, image size, and arguments that make it smaller.
TIMM = {
    'resnet18': ('CNN with four stages', 64, {}),
    'resnetv2_18': ('CNN with a convolutional classifier', 64, {}),
    'mobilenetv2_050': ('CNN with a wider layer after its last stage', 64, {}),
    'mobilenetv3_small_050': ('CNN with a wider layer after pooling', 64, {}),
    'efficientnet_b0': ('CNN with a wider layer after its last stage', 64, {}),
    'convnext_atto': ('CNN with LayerNorm', 64, {}),
    'densenet121': ('CNN with dense connections', 64, {}),
    'hrnet_w18_small': ('CNN with parallel resolutions', 64, {}),
    'poolformer_s12': ('pyramid of pooling blocks', 64, {}),
    'mambaout_femto': ('channels-last maps', 64, {}),
    'sequencer2d_s': ('channels-last maps, LSTMs', 64, {}),
    'swin_tiny_patch4_window7_224': (
        'channels-last maps, window attention',
        64,
        dict(img_size=64, window_size=4, embed_dim=24, num_heads=(1, 2, 4, 8)),
    ),
    'swinv2_tiny_window8_256': (
        'channels-last maps, window attention',
        64,
        dict(img_size=64, window_size=4, embed_dim=24, num_heads=(1, 2, 4, 8)),
    ),
    'vit_tiny_patch16_224': ('ViT with a class token', 64, dict(img_size=64, depth=6)),
    'deit_tiny_distilled_patch16_224': (
        'ViT with class and distillation tokens, two heads',
        64,
        dict(img_size=64, depth=6),
    ),
    'vit_medium_patch16_reg4_gap_256': (
        'ViT with register tokens, no class token',
        64,
        dict(img_size=64, depth=6, embed_dim=64, num_heads=2),
    ),
    'vit_small_patch14_reg4_dinov2': (
        'ViT with register and class tokens',
        56,
        dict(img_size=56, depth=6, embed_dim=64, num_heads=2),
    ),
    'vit_tiny_r_s16_p8_224': ('hybrid: ResNet, then ViT', 128, dict(img_size=128, depth=6)),
    'cait_xxs24_224': (
        'Transformer, class token added after the stages',
        64,
        dict(img_size=64, depth=6),
    ),
    'xcit_nano_12_p16_224': ('Transformer, class token added after the stages', 64, {}),
    'beit_base_patch16_224': (
        'ViT with relative positions',
        64,
        dict(img_size=64, depth=4, embed_dim=64, num_heads=2),
    ),
    'mixer_s32_224': ('MLP token mixing', 64, dict(img_size=64)),
    'gmlp_ti16_224': ('gated token mixing', 64, dict(img_size=64)),
    'pvt_v2_b0': ('pyramid Transformer, maps', 64, {}),
    'twins_pcpvt_small': ('pyramid Transformer, tokens', 64, {}),
    'hiera_tiny_224': ('pyramid Transformer, tokens', 64, dict(img_size=64, embed_dim=24)),
    'mvitv2_tiny': ('pyramid Transformer, tokens', 64, dict(img_size=64)),
    'coat_lite_tiny': ('pyramid Transformer, tokens with class tokens', 64, dict(img_size=64)),
    'pit_ti_224': ('three stages, maps and a class token', 64, dict(img_size=64)),
    'levit_128s': ('three stages of tokens, two heads', 224, {}),
    'efficientformer_l1': ('maps, then tokens', 224, {}),
    'mobilevit_xxs': ('CNN with attention blocks', 64, {}),
    'coatnet_nano_rw_224': ('convolutional stages, then attention stages', 64, dict(img_size=64)),
    'volo_d1_224': (
        'channels-last maps, class token added after the stages',
        64,
        dict(img_size=64),
    ),
    'tnt_s_patch16_224': (
        'nested tokens',
        64,
        dict(img_size=64),
    ),
    'efficientvim_m1': ('state-space model with three stages', 64, {}),
}


@torch.no_grad()
def stages_of(model: torch.nn.Module, input_size: tuple[int, int, int]) -> dict[str, str]:
    """Return tap -> layout of a model's stages, as docs/architectures.md shows them."""
    recorder = FeatureRecorder()
    recorder.find_stages(model, input_size)
    with evaluation_mode(model), recorder(model) as record:
        model(torch.zeros(1, *input_size))
    return {
        tap: str(stage_layout(model, name, record[name], input_size[1:]))
        for name, tap in recorder.taps.items()
    }


# All backbones of mmpretrain: arguments and image size.
MMPRETRAIN: dict[str, tuple[dict, int]] = {
    'AlexNet': ({}, 64),
    'BEiTViT': (dict(arch='base', img_size=64), 64),
    'CSPDarkNet': (dict(depth=53), 64),
    'CSPResNeXt': (dict(depth=50), 64),
    'CSPResNet': (dict(depth=50), 64),
    'Conformer': (dict(arch='tiny'), 64),
    'ConvMixer': (dict(arch='768/32'), 64),
    'ConvNeXt': (dict(arch='atto'), 64),
    'DaViT': (dict(arch='t'), 224),
    'DeiT3': (dict(arch='small', img_size=64), 64),
    'DenseNet': (dict(arch='121'), 64),
    'DistilledVisionTransformer': (dict(arch='deit-tiny', img_size=64), 64),
    'EdgeNeXt': (dict(arch='xxsmall'), 64),
    'EfficientFormer': (dict(arch='l1'), 224),
    'EfficientNet': (dict(arch='b0'), 64),
    'EfficientNetV2': (dict(arch='s'), 64),
    'HRNet': (dict(arch='w18'), 64),
    'HiViT': (dict(arch='tiny'), 64),
    'HorNet': (dict(arch='tiny'), 64),
    'InceptionV3': (dict(aux_logits=False), 96),
    'LeViT': (dict(arch='128s'), 224),
    'MViT': (dict(arch='tiny'), 64),
    'MixMIMTransformer': (dict(arch='base'), 224),
    'MlpMixer': (dict(arch='s', img_size=64), 64),
    'MobileNetV2': ({}, 64),
    'MobileNetV3': (dict(arch='small'), 64),
    'MobileOne': (dict(arch='s0'), 64),
    'MobileViT': (dict(arch='xx_small'), 64),
    'PCPVT': (dict(arch='small'), 64),
    'PoolFormer': (dict(arch='s12'), 64),
    'PyramidVig': (dict(arch='tiny'), 224),
    'RIFormer': (dict(arch='s12'), 64),
    'RegNet': (dict(arch='regnetx_400mf'), 64),
    'RepLKNet': (dict(arch='31B'), 64),
    'RepMLPNet': (dict(arch='b', img_size=64), 64),
    'RepVGG': (dict(arch='A0'), 64),
    'Res2Net': (dict(depth=50), 64),
    'ResNeSt': (dict(depth=50), 64),
    'ResNeXt': (dict(depth=50), 64),
    'ResNet': (dict(depth=18), 64),
    'ResNetV1c': (dict(depth=18), 64),
    'ResNetV1d': (dict(depth=18), 64),
    'ResNet_CIFAR': (dict(depth=18), 32),
    'RevVisionTransformer': (dict(arch='deit-tiny', img_size=64), 64),
    'SEResNeXt': (dict(depth=50), 64),
    'SEResNet': (dict(depth=50), 64),
    'SVT': (dict(arch='small'), 64),
    'ShuffleNetV1': ({}, 64),
    'ShuffleNetV2': ({}, 64),
    'SwinTransformer': (dict(arch='tiny', pad_small_map=True), 64),
    'SwinTransformerV2': (dict(arch='tiny'), 256),
    'T2T_ViT': ({}, 64),
    'TNT': (dict(arch='s', img_size=64), 64),
    'TinyViT': (dict(arch='5m'), 224),
    'VAN': (dict(arch='tiny'), 64),
    'VGG': (dict(depth=11), 64),
    'ViTEVA02': (dict(arch='t', img_size=56), 56),
    'ViTSAM': (dict(arch='base'), 64),
    'Vig': (dict(arch='tiny'), 224),
    'VisionTransformer': (dict(arch='deit-tiny', img_size=64), 64),
    'XCiT': (dict(patch_size=16, embed_dims=64, depth=4, num_heads=2, mlp_ratio=2), 64),
}


def backbone(name: str) -> torch.nn.Module:
    """Build an mmpretrain backbone without a head."""
    return MODELS.build(dict(type=f'mmpretrain.{name}', **MMPRETRAIN[name][0]))


def kind_of(config: dict) -> str:
    """Return the name of a model's class."""
    return config.get('backbone', config)['type']


def row(name: str, style: str, size: int, found: dict[str, str]) -> str:
    """Return a row of the tables."""
    taps = ', '.join(f'`{tap}` {form}' for tap, form in found.items())
    return f'| {name} | {style} | {size} | {taps} |'


def collapsed(title: str, table: str) -> str:
    """Return a table under a title that a click opens, on the site and on GitHub."""
    return f'<details markdown="1">\n<summary>{title}</summary>\n\n{table}\n\n</details>'


def main() -> None:
    """Write the tables into docs/architectures.md, between their markers."""
    page = Path(__file__).parents[1] / 'docs/architectures.md'
    before, _, rest = page.read_text().partition(_BEGIN)
    after = rest.partition(_END)[2]
    tables = {
        'Model families tested in all combinations': [
            row(family, kind_of(config), 32, stages_of(MODELS.build(config), (3, 32, 32)))
            for family, config in FAMILIES.items()
        ],
        f'{len(MMPRETRAIN)} mmpretrain backbones': [
            row(name, 'backbone', size, stages_of(backbone(name), (3, size, size)))
            for name, (_, size) in MMPRETRAIN.items()
        ],
        f'{len(TIMM)} timm models': [
            row(name, style, size, stages_of(MODELS.build(timm(name, **args)), (3, size, size)))
            for name, (style, size, args) in TIMM.items()
        ],
    }
    head = '| Model | Type | Image size | Taps and layouts |\n|---|---|---|---|\n'
    body = '\n\n'.join(collapsed(name, head + '\n'.join(rows)) for name, rows in tables.items())
    page.write_text(f'{before}{_BEGIN}\n\n{body}\n\n{_END}{after}')


if __name__ == '__main__':
    init_default_scope('mldr_kd_mm')
    main()

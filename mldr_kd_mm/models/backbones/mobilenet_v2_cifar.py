"""MobileNetV2 for 32 px images."""

from __future__ import annotations

from typing import Any

from mmpretrain.models.backbones import MobileNetV2

from mldr_kd_mm.registry import MODELS


@MODELS.register_module()
class MobileNetV2_CIFAR(MobileNetV2):
    """mmpretrain's MobileNetV2 with stride 1 in ``conv1`` and in ``layer2``.

    It is the counterpart of mmpretrain's ResNet_CIFAR. The parameters have MobileNetV2's names and
    shapes, so the weights of either model load into the other.

    Source: the strides of
    https://github.com/kuangliu/pytorch-cifar/blob/master/models/mobilenetv2.py.

    Outputs for an image (B, 3, 32, 32) at ``widen_factor=1``, by ``out_indices``:

    ======  ======  ========  =====
    index   module  channels  size
    ======  ======  ========  =====
    0       layer1  16        32×32
    1       layer2  24        32×32
    2       layer3  32        16×16
    3       layer4  64        8×8
    4       layer5  96        8×8
    5       layer6  160       4×4
    6       layer7  320       4×4
    7       conv2   1280      4×4
    ======  ======  ========  =====

    Args:
        **kwargs: Arguments of mmpretrain's MobileNetV2.
    """

    # expand_ratio, channels, number of blocks, stride of the first
    arch_settings = [[1, 16, 1, 1], [6, 24, 2, 1], *MobileNetV2.arch_settings[2:]]

    def __init__(self, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        # The parent's constructor fixes this stride, and ConvModule keeps a copy of it.
        self.conv1.conv.stride = self.conv1.stride = (1, 1)

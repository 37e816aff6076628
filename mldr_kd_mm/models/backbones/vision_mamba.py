"""Vision Mamba, a classifier with state-space layers."""

from __future__ import annotations

import math
from typing import Any

import torch
import torch.nn.functional as F
from mmpretrain.models import BaseClassifier, TimmClassifier
from mmpretrain.structures import DataSample
from torch import Tensor, nn

from mldr_kd_mm.models.backbones.selective_scan import selective_scan
from mldr_kd_mm.registry import MODELS
from mldr_kd_mm.utils.errors import ConfigError, check_positive


@MODELS.register_module()
class VisionMamba(BaseClassifier):
    """Vision Mamba ("v2", scanned in both directions), with the parameter names of hustvl/Vim.

    The patches form a sequence with a class token in its **middle**. ``layers.{i}`` returns the
    residual stream (B, 1 + N, d) for N patches, in float32 also under autocast. ``head`` reads the
    normalised class token (B, d).

    ``embed_dim=192`` is the paper's tiny model (7.1 M parameters), 384 its small one (25.8 M), both
    with ``depth=24``. The authors train these parameters without weight decay::

        paramwise_cfg=dict(
            custom_keys={
                name: dict(decay_mult=0.0)
                for name in ('A_log', 'A_b_log', 'mixer.D', 'pos_embed', 'cls_token')
            }
        )

    where ``mixer.D`` also matches ``mixer.D_b``.

    Checkpoints for another image size load: their ``pos_embed``, assumed to be a square grid, is
    interpolated.

    Source: Vision Mamba (arXiv 2401.09417) and https://github.com/hustvl/Vim.

    Args:
        img_size: Size of the images in pixels, a number or (H, W).
        patch_size: Side of a patch in pixels.
        in_channels: Channels of the images.
        embed_dim: Width d of the tokens.
        depth: Number of layers.
        num_classes: Number of classes.
        d_state: Size of the state of each channel.
        expand: Channels of the mixers, as a multiple of ``embed_dim``.
        d_conv: Kernel size of the mixers' convolutions.
        drop_path_rate: Drop rate of the last layer; it rises linearly from 0 at the first.
        loss: Config of the loss.
        train_cfg: ``dict(augments=[...])`` for batch augmentations such as Mixup.
        data_preprocessor: Config of the data preprocessor. None: mmpretrain's ClsDataPreprocessor.
        init_cfg: Config of the initialisation, such as ``dict(type='Pretrained', ...)``.

    Attributes:
        img_size: (H, W) in pixels.
        grid_size: (h, w) in patches, which are in row-major order.
        num_prefix_tokens: Number of tokens that are not patches, 1 (timm's name).
        class_token_index: Index of the class token among the 1 + N tokens.

    Raises:
        ConfigError: If an argument is out of range, or the patches do not tile the image.
    """

    num_prefix_tokens = 1

    def __init__(
        self,
        img_size: int | tuple[int, int] = 224,
        patch_size: int = 16,
        in_channels: int = 3,
        embed_dim: int = 192,
        depth: int = 24,
        num_classes: int = 1000,
        d_state: int = 16,
        expand: int = 2,
        d_conv: int = 4,
        drop_path_rate: float = 0.0,
        loss: dict | nn.Module | None = None,
        train_cfg: dict | None = None,
        data_preprocessor: dict | None = None,
        init_cfg: dict | None = None,
    ) -> None:
        check_positive(
            patch_size=patch_size,
            in_channels=in_channels,
            embed_dim=embed_dim,
            depth=depth,
            num_classes=num_classes,
            d_state=d_state,
            expand=expand,
            d_conv=d_conv,
        )
        if not 0 <= drop_path_rate < 1:
            raise ConfigError(f'drop_path_rate={drop_path_rate!r}: must be at least 0 and below 1')
        preprocessor = _preprocessor(data_preprocessor, train_cfg, num_classes)
        super().__init__(init_cfg=init_cfg, data_preprocessor=preprocessor)
        self.img_size = _image_size(img_size, patch_size)
        self.grid_size = (self.img_size[0] // patch_size, self.img_size[1] // patch_size)
        num_patches = math.prod(self.grid_size)
        self.class_token_index = num_patches // 2

        loss = {'type': 'CrossEntropyLoss'} if loss is None else loss
        self.loss_module = loss if isinstance(loss, nn.Module) else MODELS.build(loss)
        self.patch_embed = _PatchEmbed(in_channels, embed_dim, patch_size)
        self.cls_token = nn.Parameter(torch.empty(1, 1, embed_dim))
        self.pos_embed = nn.Parameter(torch.empty(1, 1 + num_patches, embed_dim))
        self.layers = nn.ModuleList(
            _Layer(
                _Mixer(embed_dim, d_state, expand, d_conv, out_scale=depth**-0.5),
                embed_dim,
                drop_path=drop_path_rate * i / max(1, depth - 1),
            )
            for i in range(depth)
        )
        self.norm_f = nn.RMSNorm(embed_dim, eps=1e-5)
        self.head = nn.Linear(embed_dim, num_classes)
        for parameter in (self.cls_token, self.pos_embed, self.head.weight):
            nn.init.trunc_normal_(parameter, std=0.02)
        nn.init.zeros_(self.head.bias)
        self.register_load_state_dict_pre_hook(_resize_pos_embed)

    predict = TimmClassifier.predict
    _get_loss = TimmClassifier._get_loss
    _get_predictions = TimmClassifier._get_predictions

    def forward(
        self, inputs: Tensor, data_samples: list[DataSample] | None = None, mode: str = 'tensor'
    ) -> Tensor | dict[str, Tensor] | list[DataSample]:
        """Classify images.

        Args:
            inputs: Images (B, in_channels, H, W) of the size ``img_size``.
            data_samples: Labels for ``'loss'``; samples to write predictions to for ``'predict'``.
            mode: ``'tensor'``, ``'loss'`` or ``'predict'``.

        Returns:
            For ``'tensor'`` the logits (B, C), for ``'loss'`` a dict with the loss, and for
            ``'predict'`` a DataSample with the prediction for each image.

        Raises:
            ConfigError: If the images are not of size ``img_size``.
        """
        if mode == 'tensor':
            return self.head(self.extract_feat(inputs)[:, self.class_token_index])
        if mode == 'loss':
            return self.loss(inputs, data_samples)
        if mode == 'predict':
            return self.predict(inputs, data_samples)
        raise RuntimeError(f'Invalid mode "{mode}".')

    def extract_feat(self, inputs: Tensor) -> Tensor:
        """Return all tokens after the last norm (B, 1 + N, d), the class token in the middle."""
        size = tuple(inputs.shape[-2:])
        if size != self.img_size:
            raise ConfigError(f'img_size={self.img_size}: must be {size}, the size of the images')
        patches = self.patch_embed(inputs)
        before, after = patches.tensor_split([self.class_token_index], dim=1)
        # len() would be a constant in an exported graph.
        class_token = self.cls_token.expand(patches.shape[0], -1, -1)
        tokens = torch.cat([before, class_token, after], dim=1) + self.pos_embed
        for layer in self.layers:
            tokens = layer(tokens)
        return self.norm_f(tokens)

    def loss(self, inputs: Tensor, data_samples: list[DataSample], **kwargs: Any) -> dict:
        return self._get_loss(self(inputs), data_samples, **kwargs)


class _PatchEmbed(nn.Module):
    """Embed images (B, C, H, W) as patches (B, N, d) in row-major order."""

    def __init__(self, in_channels: int, embed_dim: int, patch_size: int) -> None:
        super().__init__()
        self.proj = nn.Conv2d(in_channels, embed_dim, patch_size, stride=patch_size)

    def forward(self, images: Tensor) -> Tensor:
        return self.proj(images).flatten(2).mT


class _Layer(nn.Module):
    """Add the mixer's output for the normalised residual stream (B, L, d) to the stream."""

    def __init__(self, mixer: _Mixer, embed_dim: int, drop_path: float) -> None:
        from timm.layers import DropPath  # takes half a second, only needed here

        super().__init__()
        self.norm = nn.RMSNorm(embed_dim, eps=1e-5)
        self.mixer = mixer
        self.drop_path = DropPath(drop_path)

    def forward(self, tokens: Tensor) -> Tensor:
        return tokens + self.drop_path(self.mixer(self.norm(tokens)))


class _Mixer(nn.Module):
    """Mamba's mixer of tokens (B, L, d): the mean of a forward and a backward scan.

    Args:
        embed_dim: Width d.
        d_state: Size of the state of each channel.
        expand: Channels E, as a multiple of d.
        d_conv: Kernel size of the convolutions.
        out_scale: Factor of the output's initial weights.
    """

    def __init__(
        self, embed_dim: int, d_state: int, expand: int, d_conv: int, out_scale: float
    ) -> None:
        super().__init__()
        channels, rank = expand * embed_dim, math.ceil(embed_dim / 16)
        self.sizes = (rank, d_state, d_state)
        self.in_proj = nn.Linear(embed_dim, 2 * channels, bias=False)
        self.out_proj = nn.Linear(channels, embed_dim, bias=False)
        # hustvl/Vim's names: A_log and A_b_log, but conv1d and conv1d_b.
        for infix in ('', '_b'):
            rates = torch.arange(1, d_state + 1, dtype=torch.float32).log().repeat(channels, 1)
            self.register_parameter(f'A{infix}_log', nn.Parameter(rates))
            self.register_parameter(f'D{infix}', nn.Parameter(torch.ones(channels)))
            conv = nn.Conv1d(channels, channels, d_conv, padding=d_conv - 1, groups=channels)
            self.add_module(f'conv1d{infix}', conv)
            self.add_module(f'x_proj{infix}', nn.Linear(channels, sum(self.sizes), bias=False))
            self.add_module(f'dt_proj{infix}', nn.Linear(rank, channels))
        self._init(out_scale)

    def _init(self, out_scale: float) -> None:
        nn.init.kaiming_uniform_(self.out_proj.weight, a=math.sqrt(5))
        bound = self.dt_proj.in_features**-0.5
        with torch.no_grad():
            self.out_proj.weight.mul_(out_scale)
            for dt_proj in (self.dt_proj, self.dt_proj_b):
                nn.init.uniform_(dt_proj.weight, -bound, bound)
            # Steps log-uniform in [0.001, 0.1]; log(exp(x) - 1) is the inverse of softplus.
            steps = torch.empty_like(self.dt_proj.bias).uniform_(math.log(1e-3), math.log(0.1))
            steps = steps.exp().clamp(min=1e-4)
            self.dt_proj.bias.copy_(steps.expm1().log())
            # Zero in the authors' models, unlike in the forward direction.
            self.dt_proj_b.bias.zero_()

    def forward(self, tokens: Tensor) -> Tensor:
        x, z = self.in_proj(tokens).mT.chunk(2, dim=1)
        forward = self._scan(x, z, '')
        backward = self._scan(x.flip(-1), z.flip(-1), '_b').flip(-1)
        return self.out_proj((forward + backward).mT / 2)

    def _scan(self, x: Tensor, z: Tensor, infix: str) -> Tensor:
        """Scan x with its gate z, both (B, E, L), in one direction: (B, E, L)."""
        x_proj, dt_proj = getattr(self, f'x_proj{infix}'), getattr(self, f'dt_proj{infix}')
        # The convolution pads both sides; without its last outputs it is causal.
        u = F.silu(getattr(self, f'conv1d{infix}')(x)[..., : x.shape[-1]])
        steps, B, C = x_proj(u.mT).split(self.sizes, dim=-1)
        # The scan adds the bias, in float32.
        delta = F.linear(steps, dt_proj.weight).mT
        A, D = -getattr(self, f'A{infix}_log').exp(), getattr(self, f'D{infix}')
        return selective_scan(u, delta, A, B.mT, C.mT, D, z, dt_proj.bias)


def _preprocessor(config: dict | None, train_cfg: dict | None, num_classes: int) -> nn.Module:
    """Build the preprocessor with the batch augmentations of ``train_cfg``."""
    # mmengine would not find its scope without a default scope.
    default = {'type': 'mldr_kd_mm.ClsDataPreprocessor', 'num_classes': num_classes}
    config = dict(config or {})
    config = config if 'type' in config else default | config
    if train_cfg is not None and 'augments' in train_cfg:
        config['batch_augments'] = train_cfg
    return MODELS.build(config)


def _image_size(img_size: int | tuple[int, int], patch_size: int) -> tuple[int, int]:
    size = (img_size, img_size) if isinstance(img_size, int) else tuple(img_size)
    if len(size) != 2 or any(side < 1 or side % patch_size for side in size):
        raise ConfigError(
            f'img_size={img_size!r}: must be a number or (height, width) of multiples of '
            f'patch_size={patch_size}'
        )
    return size


def _resize_pos_embed(
    model: VisionMamba, state_dict: dict[str, Tensor], prefix: str, *_: object
) -> None:
    """Interpolate, in place, the position embedding of a checkpoint for another image size.

    An embedding that is not a square grid or has another width is left to the loader to report.
    """
    key = prefix + 'pos_embed'
    source = state_dict.get(key)
    target = model.pos_embed.shape
    if (
        source is None
        or source.shape == target
        or source.dim() != 3
        or source.shape[2] != target[2]
    ):
        return
    num_patches = source.shape[1] - 1
    side = math.isqrt(max(num_patches, 0))
    if side == 0 or side**2 != num_patches:
        return
    middle = num_patches // 2
    before, class_token, after = source.split([middle, 1, num_patches - middle], dim=1)
    grid = torch.cat([before, after], dim=1).mT.unflatten(2, (side, side)).float()
    # Without antialiasing a coarser grid would skip most of the entries.
    grid = F.interpolate(grid, model.grid_size, mode='bicubic', antialias=True)
    grid = grid.flatten(2).mT.to(source.dtype)
    before, after = grid.tensor_split([model.class_token_index], dim=1)
    state_dict[key] = torch.cat([before, class_token, after], dim=1)

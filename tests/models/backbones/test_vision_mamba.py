"""VisionMamba: the authors' weights and outputs, and mmpretrain's interface."""

from __future__ import annotations

import copy
from pathlib import Path

import helpers
import numpy as np
import pytest
import torch
from mmengine.optim import build_optim_wrapper
from mmpretrain.structures import DataSample
from torch import nn
from torch.testing import assert_close

from mldr_kd_mm import ConfigError
from mldr_kd_mm.registry import MODELS

# Computed with the authors' release.
GOLDEN = np.load(Path(__file__).parents[2] / 'data' / 'vim.npz')
MIXUP = dict(augments=[dict(type='Mixup', alpha=0.8)])


def build(**kwargs):
    """Build a model with 4x4 patches, width 32 and depth 2."""
    torch.manual_seed(0)
    config = dict(
        type='VisionMamba', img_size=64, embed_dim=32, depth=2, num_classes=helpers.NUM_CLASSES
    )
    return MODELS.build(config | kwargs)


def images(size=2, height=64, width=64):
    return torch.randn(size, 3, height, width, generator=torch.Generator().manual_seed(0))


def golden():
    sizes = {k: int(GOLDEN[k]) for k in ('embed_dim', 'depth', 'img_size', 'num_classes')}
    prefix = 'weight.'
    weights = {
        key.removeprefix(prefix): torch.from_numpy(GOLDEN[key])
        for key in GOLDEN
        if key.startswith(prefix)
    }
    model = build(**sizes)
    model.load_state_dict(weights, strict=True)
    return model.eval()


class TestAuthors:
    def test_logits(self):
        expected = torch.from_numpy(GOLDEN['logits'])
        logits = golden()(torch.from_numpy(GOLDEN['input']))
        assert_close(logits, expected, rtol=1e-5, atol=1e-5 * expected.abs().max().item())

    @pytest.mark.parametrize(('embed_dim', 'millions'), [(192, 7.148), (384, 25.797)])
    def test_sizes(self, embed_dim, millions):
        with torch.device('meta'):
            model = MODELS.build(dict(type='VisionMamba', embed_dim=embed_dim))
        assert len(model.state_dict()) == len(list(model.parameters())) == 415
        assert not list(model.buffers())
        assert round(sum(p.numel() for p in model.parameters()) / 1e6, 3) == millions
        assert model.pos_embed.shape == (1, 197, embed_dim)
        assert (model.img_size, model.grid_size) == ((224, 224), (14, 14))
        assert (model.class_token_index, model.num_prefix_tokens) == (98, 1)


class TestTokens:
    def test_a_layer_returns_the_residual_stream(self):
        model, stream = build().eval(), {}
        for i, layer in enumerate(model.layers):
            layer.register_forward_hook(lambda _, x, y, i=i: stream.update({i: (*x, y)}))
        with torch.autocast('cpu', torch.bfloat16):
            model(images())
        for x, y in stream.values():
            assert x.shape == y.shape == (2, 17, 32)
            assert x.dtype == y.dtype == torch.float32
        assert_close(stream[1][0], stream[0][1], rtol=0, atol=0)

    @pytest.mark.parametrize('size', [(48, 48), (64, 64), (32, 80)])
    def test_the_head_reads_the_class_token(self, size):
        model, read = build(img_size=size).eval(), []
        model.head.register_forward_hook(lambda _, x, y: read.extend(x))
        logits = model(images(2, *size))
        tokens = model.extract_feat(images(2, *size))
        patches = size[0] // 16 * (size[1] // 16)
        assert model.grid_size == (size[0] // 16, size[1] // 16)
        assert model.class_token_index == patches // 2
        assert tokens.shape == (2, patches + 1, 32)
        assert_close(read[0], tokens[:, patches // 2], rtol=0, atol=0)
        assert logits.shape == (2, helpers.NUM_CLASSES)

    def test_the_class_token_stands_in_the_middle(self):
        model, entered = build(), []
        with torch.no_grad():
            model.pos_embed.zero_()
            model.cls_token.fill_(7)
        model.layers[0].register_forward_pre_hook(lambda _, x: entered.extend(x))
        pixels = images()
        model(pixels)
        patches = model.patch_embed(pixels)
        assert_close(entered[0][:, 8], torch.full((2, 32), 7.0), rtol=0, atol=0)
        assert_close(entered[0][:, :8], patches[:, :8], rtol=0, atol=0)
        assert_close(entered[0][:, 9:], patches[:, 8:], rtol=0, atol=0)

    def test_both_directions_reach_the_class_token(self):
        model, pixels = build(depth=1).eval(), images().requires_grad_()
        model(pixels).sum().backward()
        for corner in (pixels.grad[..., :16, :16], pixels.grad[..., -16:, -16:]):
            assert corner.abs().sum() > 0


class TestContract:
    def test_loss_reaches_every_parameter(self):
        model = build()
        data = model.data_preprocessor(helpers.batch(4, pixels=64), training=True)
        losses = model(data['inputs'] / 255, data['data_samples'], mode='loss')
        assert set(losses) == {'loss'}
        losses['loss'].backward()
        without = [n for n, p in model.named_parameters() if p.grad is None or not p.grad.any()]
        assert not without

    def test_the_loss_is_the_config_s(self):
        smooth = dict(type='LabelSmoothLoss', label_smooth_val=0.1, mode='original')
        samples = helpers.batch(2)['data_samples']
        target = torch.cat([sample.gt_label for sample in samples])
        for loss, smoothing in ((None, 0.0), (smooth, 0.1)):
            model = build(loss=loss).eval()
            value = model(images(), samples, mode='loss')['loss']
            expected = nn.functional.cross_entropy(
                model(images()), target, label_smoothing=smoothing
            )
            assert_close(value, expected)

    def test_predictions(self):
        model = build().eval()
        samples = [DataSample(), DataSample()]
        with torch.inference_mode():
            logits = model(images())
            predictions = model(images(), samples, mode='predict')
            fresh = model(images(), mode='predict')
        for prediction, sample, other, row in zip(predictions, samples, fresh, logits, strict=True):
            assert prediction is sample
            assert_close(prediction.pred_score, row.softmax(0))
            assert prediction.pred_label.item() == other.pred_label.item() == row.argmax().item()

    def test_an_unknown_mode(self):
        with pytest.raises(RuntimeError, match='Invalid mode "train"'):
            build()(images(), mode='train')

    def test_mixup(self):
        """The preprocessor gets the number of classes from the model."""
        model = build(train_cfg=MIXUP)
        np.random.seed(0)
        batch = helpers.batch(6, pixels=64)
        samples = model.data_preprocessor(copy.deepcopy(batch), training=True)['data_samples']
        scores = torch.stack([sample.gt_score for sample in samples])
        assert scores.shape == (6, helpers.NUM_CLASSES)
        assert_close(scores.sum(1), torch.ones(6))
        assert (scores.amax(1) < 1).any()
        optim_wrapper = build_optim_wrapper(model, dict(optimizer=dict(type='SGD', lr=0.0)))
        assert model.train_step(batch, optim_wrapper)['loss'].isfinite()

    def test_the_preprocessor_s_config_is_used_and_left_alone(self):
        config, train_cfg = dict(mean=[1.0] * 3, std=[2.0] * 3), copy.deepcopy(MIXUP)
        before = copy.deepcopy(config)
        model = build(data_preprocessor=config, train_cfg=train_cfg)
        assert (config, train_cfg) == (before, MIXUP)
        data = model.data_preprocessor(dict(inputs=torch.full((1, 3, 64, 64), 5.0)))
        assert_close(data['inputs'], torch.full((1, 3, 64, 64), 2.0))
        assert not model.data_preprocessor.state_dict()

    def test_trains_in_a_runner(self, tmp_path):
        config = dict(
            type='VisionMamba',
            img_size=32,
            patch_size=8,
            embed_dim=32,
            depth=2,
            num_classes=helpers.NUM_CLASSES,
        )
        trained = helpers.train(config, tmp_path).model
        checkpoint = torch.load(tmp_path / 'epoch_1.pth', weights_only=False)['state_dict']
        fresh = MODELS.build(config)
        fresh.load_state_dict(checkpoint, strict=True)
        assert_close(dict(fresh.state_dict()), dict(trained.state_dict()), rtol=0, atol=0)


class TestTraining:
    def test_init_weights_leaves_the_weights_alone(self):
        model = build()
        before = copy.deepcopy(model.state_dict())
        model.init_weights()
        assert_close(dict(model.state_dict()), dict(before), rtol=0, atol=0)

    def test_init_cfg_loads_a_checkpoint(self, tmp_path):
        path, source = str(tmp_path / 'weights.pth'), build()
        torch.save({'state_dict': source.state_dict()}, path)
        model = build(init_cfg=dict(type='Pretrained', checkpoint=path))
        with torch.no_grad():
            model.head.weight.zero_()
        model.init_weights()
        assert_close(dict(model.state_dict()), dict(source.state_dict()), rtol=0, atol=0)

    def test_initial_values(self):
        model = build(embed_dim=64, depth=4)
        mixer = model.layers[0].mixer
        for name in ('A_log', 'A_b_log'):
            assert_close(getattr(mixer, name).exp(), torch.arange(1.0, 17).repeat(128, 1))
        assert (mixer.D == 1).all() and (mixer.D_b == 1).all()
        steps = nn.functional.softplus(mixer.dt_proj.bias)
        assert steps.min() > 0.99e-3 and steps.max() < 0.101
        assert steps.log().std() > 1  # log-uniform: 1.33
        assert not mixer.dt_proj_b.bias.any()
        for dt_proj in (mixer.dt_proj, mixer.dt_proj_b):
            assert 0.45 < dt_proj.weight.abs().max() <= 0.5  # rank 4
        bound = 128**-0.5 / 2  # Kaiming-uniform's bound, divided by the root of the depth
        assert 0.95 * bound < mixer.out_proj.weight.abs().max() <= bound
        assert 0.015 < model.pos_embed.std() < 0.025
        assert not model.head.bias.any()

    def test_weight_decay_of_the_docstring(self):
        names = ('A_log', 'A_b_log', 'mixer.D', 'pos_embed', 'cls_token')
        model = build()
        wrapper = build_optim_wrapper(
            model,
            dict(
                optimizer=dict(type='AdamW', lr=1e-3, weight_decay=0.1),
                paramwise_cfg=dict(custom_keys={name: dict(decay_mult=0.0) for name in names}),
            ),
        )
        groups = wrapper.optimizer.param_groups
        free = {id(p) for g in groups if g['weight_decay'] == 0 for p in g['params']}
        found = {name.split('.')[-1] for name, p in model.named_parameters() if id(p) in free}
        assert found == {'A_log', 'A_b_log', 'D', 'D_b', 'pos_embed', 'cls_token'}

    def test_stochastic_depth(self):
        model = build(depth=3, drop_path_rate=0.5)
        rates = [layer.drop_path.drop_prob for layer in model.layers]
        assert rates == [0, 0.25, 0.5]
        model.train()
        torch.manual_seed(0)
        layer, tokens = model.layers[2], torch.randn(64, 3, 32)
        kept = (layer(tokens) != tokens).flatten(1).any(1)
        assert 16 < kept.sum() < 48
        model.eval()
        assert (layer(tokens) != tokens).flatten(1).any(1).all()

    def test_autocast(self):
        model = build()
        with torch.autocast('cpu', torch.bfloat16):
            logits = model(images())
        logits.float().square().sum().backward()
        assert logits.isfinite().all()
        assert all(p.grad.isfinite().all() for p in model.parameters())
        assert_close(logits.float(), model(images()), rtol=0.1, atol=0.02)

    def test_a_deep_copy_is_independent(self):
        model = build().eval()
        twin = copy.deepcopy(model)
        assert_close(twin(images()), model(images()), rtol=0, atol=0)
        with torch.no_grad():
            model.head.weight.zero_()
        assert twin.head.weight.any()
        larger = build(img_size=96)
        copy.deepcopy(larger).load_state_dict(model.state_dict())
        assert larger.pos_embed.shape == (1, 37, 32)


def resized(grid, **target):
    """Load a ``pos_embed`` of this grid (h, w) with class token 100; return grid and token."""
    model = build(**target)
    patches = grid.reshape(1, -1, 1).expand(-1, -1, 32)
    middle = patches.shape[1] // 2
    entry = torch.full((1, 1, 32), 100.0)
    pos_embed = torch.cat([patches[:, :middle], entry, patches[:, middle:]], 1)
    model.load_state_dict(model.state_dict() | {'pos_embed': pos_embed}, strict=True)
    middle = model.class_token_index
    loaded = model.pos_embed.detach()[0, :, 0]
    rest = torch.cat([loaded[:middle], loaded[middle + 1 :]])
    return rest.view(model.grid_size), loaded[middle].item()


class TestImageSizes:
    # 3x3 and 5x5 have an odd number of patches.
    @pytest.mark.parametrize('source', [3, 4, 5])
    @pytest.mark.parametrize('size', [(48, 48), (96, 96), (80, 80), (64, 128)])
    def test_pos_embed_is_interpolated(self, source, size):
        rows = torch.arange(float(source))[:, None].expand(-1, source)
        for grid, dim in ((rows, 0), (rows.T, 1)):
            loaded, token = resized(grid, img_size=size)
            assert token == 100
            along = loaded.select(1 - dim, 0)
            # Values that depend only on the row still do; their order and mean are kept.
            assert_close(loaded, along.unsqueeze(1 - dim).expand_as(loaded), rtol=0, atol=1e-5)
            assert (along.diff() > 0).all()
            assert_close(along.mean().item(), (source - 1) / 2, rtol=0, atol=1e-4)

    def test_values(self):
        """The centre of the grid keeps its value."""
        loaded, _ = resized(torch.arange(9.0).view(3, 3), img_size=80)
        assert loaded[2, 2].item() == pytest.approx(4, abs=1e-5)
        assert_close(loaded + loaded.flip(0, 1), torch.full((5, 5), 8.0), rtol=0, atol=1e-5)

    def test_a_coarser_grid_averages(self):
        checkers = (torch.arange(9)[:, None] + torch.arange(9)) % 2 * 2.0 - 1
        loaded, _ = resized(checkers, img_size=48)
        assert loaded.abs().max() < 0.1  # 1 if entries were only picked

    def test_the_same_size_is_left_alone(self):
        grid = torch.randn(4, 4, generator=torch.Generator().manual_seed(0))
        loaded, token = resized(grid, img_size=64)
        assert_close(loaded, grid, rtol=0, atol=0)
        assert token == 100

    def test_within_another_module(self):
        source = nn.ModuleDict({'student': build()})
        target = nn.ModuleDict({'student': build(img_size=96)})
        weights = source.state_dict()
        target.load_state_dict(weights, strict=True)
        alone = build(img_size=96)
        alone.load_state_dict(source['student'].state_dict())
        assert_close(target['student'].pos_embed, alone.pos_embed, rtol=0, atol=0)
        assert weights['student.pos_embed'].shape == (1, 17, 32)  # the caller's dict is unchanged

    @pytest.mark.parametrize('shape', [(1, 17, 16), (1, 13, 32), (1, 1, 32), (17, 32)])
    def test_what_does_not_fit_is_the_loaders_to_report(self, shape):
        model = build(img_size=96)
        weights = model.state_dict() | {'pos_embed': torch.zeros(shape)}
        with pytest.raises(RuntimeError, match='size mismatch for pos_embed'):
            model.load_state_dict(weights)

    def test_a_missing_one_is_the_loaders_to_report(self):
        model = build()
        weights = model.state_dict()
        del weights['pos_embed']
        with pytest.raises(RuntimeError, match='Missing key'):
            model.load_state_dict(weights)


class TestErrors:
    @pytest.mark.parametrize('img_size', [60, (64, 40), (64,), 0])
    def test_the_patches_must_tile_the_image(self, img_size):
        with pytest.raises(ConfigError) as caught:
            build(img_size=img_size)
        message = str(caught.value)
        assert message.startswith(f'img_size={img_size}: must be')
        assert message.endswith('patch_size=16')

    @pytest.mark.parametrize('size', [(32, 64), (64, 96)])
    def test_images_of_another_size(self, size):
        with pytest.raises(ConfigError) as caught:
            build()(images(1, *size))
        message = str(caught.value)
        assert message == f'img_size=(64, 64): must be {size}, the size of the images'

    @pytest.mark.parametrize('field', ['patch_size', 'embed_dim', 'depth', 'num_classes', 'd_conv'])
    @pytest.mark.parametrize('value', [0, -1, 1.5, None])
    def test_numbers(self, field, value):
        with pytest.raises(ConfigError, match=f'^{field}={value}: must be a positive integer'):
            build(**{field: value})

    @pytest.mark.parametrize('rate', [-0.1, 1.0])
    def test_drop_path_rate(self, rate):
        with pytest.raises(
            ConfigError, match=rf'^drop_path_rate={rate}: must be at least 0 and below 1$'
        ):
            build(drop_path_rate=rate)

"""The vote of nearest neighbours against NumPy, and its loops with real models."""

from __future__ import annotations

import copy
import json
from pathlib import Path

import numpy as np
import pytest
import torch
from helpers import mldr, resnet, run_ranks, runner_config, timm_resnet, train, vit
from mmengine.config import Config
from mmengine.runner import Runner
from torch.testing import assert_close

from mldr_kd_mm import ConfigError
from mldr_kd_mm.engine.knn_loop import bank_config
from mldr_kd_mm.engine.preflight import preflight
from mldr_kd_mm.evaluation import knn
from mldr_kd_mm.evaluation.knn import KNNClassifier, embedder
from mldr_kd_mm.registry import MODELS

EMBED = Path(__file__).parents[2] / 'configs/_base_/methods/embed.py'
METHOD = Config.fromfile(EMBED)
FIELDS = ('model', 'train_cfg', 'optim_wrapper', 'train_dataloader', 'val_dataloader')


def votes(bank, labels, queries, k, temperature, classes):
    """Return the shares of the classes, with NumPy and the whole matrix of similarities."""
    bank, queries = (x / np.linalg.norm(x, axis=1, keepdims=True) for x in (bank, queries))
    similar = queries @ bank.T
    shares = np.zeros((len(queries), classes))
    for row, of_query in enumerate(similar):
        for place in np.argsort(-of_query)[:k]:
            shares[row, labels[place]] += np.exp(of_query[place] / temperature)
    return shares / shares.sum(1, keepdims=True)


class TestClassifier:
    @pytest.mark.parametrize(
        ('size', 'k', 'block'), [(50, 20, 7), (50, 1, 50), (50, 20, 3), (5, 20, 2), (200, 20, 64)]
    )
    def test_is_its_definition(self, size, k, block, monkeypatch):
        monkeypatch.setattr(knn, '_BLOCK', block)
        random = np.random.default_rng(size)
        bank, queries = random.normal(size=(size, 6)), random.normal(size=(9, 6))
        labels = random.integers(0, 4, size)
        found = KNNClassifier(*map(torch.from_numpy, (bank, labels)), k, 0.3, 5)(
            torch.from_numpy(queries)
        )
        expected = votes(bank, labels, queries, min(k, size), 0.3, 5)
        assert_close(found.double(), torch.from_numpy(expected), rtol=1e-5, atol=1e-6)

    def test_low_temperature_does_not_overflow(self):
        bank = torch.eye(3)
        found = KNNClassifier(bank, torch.arange(3), temperature=1e-3)(bank)
        assert_close(found, torch.eye(3))

    @pytest.mark.parametrize(
        ('labels', 'message'),
        [
            ([], 'labels: has no labelled image; must have images of two classes'),
            ([3, 3], 'labels: has images of class 3 alone; must have images of two classes'),
        ],
    )
    def test_wrong_banks(self, labels, message):
        with pytest.raises(ConfigError) as caught:
            KNNClassifier(torch.ones(len(labels), 2), torch.tensor(labels, dtype=torch.long))
        assert str(caught.value) == message


def headless(**kwargs):
    """Config of a Distiller without any head, and without a neck."""
    config = mldr(
        teacher=dict(vit(), head=None),
        student=timm_resnet(num_classes=0),
        neck=None,
        losses=METHOD.method.to_dict()['losses'],
    )
    return config | kwargs


def run_config(tmp_path, **kwargs):
    return Config(
        copy.deepcopy(
            runner_config(headless(), tmp_path, **dict(val_cfg=dict(type='KNNLoop', k=5), **kwargs))
        )
    )


@pytest.fixture(scope='module')
def runner(tmp_path_factory):
    """Return a run of a student without a head, validated twice."""
    folder = tmp_path_factory.mktemp('runs') / 'knn'
    return train(headless(), folder, max_epochs=2, val_cfg=dict(type='KNNLoop', k=5))


def features_of(embed, model, loader):
    features, labels = [], []
    with torch.no_grad():
        for data in loader:
            batch = model.data_preprocessor(data, False)
            features.append(embed(batch['inputs']))
            labels += [int(sample.gt_label) for sample in batch['data_samples']]
    return torch.cat(features).double().numpy(), np.array(labels)


class TestLoop:
    @pytest.mark.parametrize('side', ['student', 'teacher'])
    def test_accuracy_is_that_of_numpy(self, runner, side):
        model, loop = runner.model.eval(), runner.val_loop
        embed = dict(student=model.embed, teacher=model.teacher.embed)[side]
        bank, labels = features_of(embed, model, loop.bank)
        queries, truth = features_of(embed, model, loop.dataloader)
        assert (len(bank), len(queries)) == (40, 30)
        right = votes(bank, labels, queries, 5, 0.07, 10).argmax(1) == truth
        hub = runner.message_hub
        found = dict(
            student=hub.get_scalar('val/accuracy/top1').current(),
            teacher=hub.get_info('teacher_metrics')['accuracy/top1'],
        )[side]
        assert found == pytest.approx(100 * right.mean(), abs=1e-4)
        assert 0 < found < 100

    def test_of_a_test(self, runner, tmp_path):
        torch.save(dict(state_dict=runner.model.state_dict()), tmp_path / 'weights.pth')
        fields = {f'val_{name}': None for name in ('dataloader', 'cfg', 'evaluator')}
        cfg = run_config(tmp_path, load_from=str(tmp_path / 'weights.pth'))
        for name in ('dataloader', 'cfg', 'evaluator'):
            cfg[f'test_{name}'] = cfg[f'val_{name}']
        cfg.test_cfg.type = 'KNNTestLoop'
        metrics = Runner.from_cfg(Config(cfg.to_dict() | fields)).test()
        expected = runner.message_hub.get_scalar('val/accuracy/top1').current()
        assert metrics['accuracy/top1'] == pytest.approx(expected, abs=1e-4)

    def test_two_processes_are_one(self, runner, tmp_path):
        """They divide the 27 images of the bank unevenly."""
        torch.save(dict(state_dict=runner.model.state_dict()), tmp_path / 'weights.pth')
        cfg = run_config(tmp_path, load_from=str(tmp_path / 'weights.pth'))
        cfg.train_dataloader.dataset.subset = dict(labels=[*range(9)], per_class=3)
        expected = Runner.from_cfg(copy.deepcopy(cfg)).val()['accuracy/top1']
        (tmp_path / 'config.json').write_text(json.dumps(cfg.to_dict()))
        worker = Path(__file__).with_name('knn_worker.py')
        run_ranks(*((worker, rank, 2, tmp_path) for rank in range(2)))
        for rank in range(2):
            found = json.loads((tmp_path / f'found{rank}.json').read_text())
            assert found['accuracy/top1'] == pytest.approx(expected, abs=1e-4)

    def test_bank_of_a_mixture_is_its_labelled_part(self, tmp_path):
        cfg = run_config(tmp_path)
        labeled = cfg.train_dataloader.dataset.to_dict()
        unlabeled = dict(type='UnlabeledFolder', data_root='x', pipeline=[])
        cfg.train_dataloader.dataset = dict(
            type='MixedDataset', labeled=labeled, unlabeled=unlabeled
        )
        pipeline = cfg.val_dataloader.dataset.pipeline
        assert bank_config(cfg)['dataset'] == dict(labeled, pipeline=pipeline)

    def test_bank_is_the_training_set_with_the_validation_pipeline(self, tmp_path):
        cfg = run_config(tmp_path)
        cfg.train_dataloader.dataset = dict(
            type='RepeatDataset', times=3, dataset=cfg.train_dataloader.dataset
        )
        cfg.val_dataloader.dataset.pipeline = [dict(type='PackInputs', meta_keys=())]
        found = bank_config(cfg)
        assert found['dataset'] == dict(
            cfg.train_dataloader.dataset.dataset, pipeline=[dict(type='PackInputs', meta_keys=())]
        )
        assert found['batch_size'] == 10

    def test_bank_of_a_part_is_that_part(self, tmp_path):
        cfg = run_config(tmp_path)
        train = cfg.train_dataloader.dataset.to_dict()
        part = dict(type='HeldOutPart', fraction=0.5, dataset=train)
        cfg.train_dataloader.dataset = dict(type='RepeatDataset', times=2, dataset=part)
        pipeline = cfg.val_dataloader.dataset.pipeline
        assert bank_config(cfg)['dataset'] == dict(part, dataset=dict(train, pipeline=pipeline))

    @pytest.mark.parametrize(
        ('change', 'message'),
        [
            ({'val_cfg.k': 0}, 'k=0: must be a positive integer'),
            ({'val_cfg.temperature': 0.0}, 'temperature=0.0: must be a positive number'),
            (
                {'train_dataloader.dataset.subset': dict(labels=[4], per_class=5)},
                'val_cfg.bank_dataloader: has images of class 0 alone; must have images of two',
            ),
            (
                {'train_dataloader.dataset': None},
                'val_cfg.bank_dataloader: must be set to the loader of labelled images, as',
            ),
        ],
        ids=str,
    )
    def test_wrong_arguments(self, change, message, tmp_path):
        cfg = run_config(tmp_path)
        cfg.merge_from_dict(change)
        with pytest.raises(ConfigError) as caught:
            runner = Runner.from_cfg(cfg)
            runner.build_val_loop(cfg.val_cfg)
        assert str(caught.value).startswith(message)

    def test_preflight(self, tmp_path):
        preflight(run_config(tmp_path), *FIELDS)
        cfg = run_config(tmp_path)
        cfg.val_cfg.bank_dataloader = copy.deepcopy(cfg.val_dataloader)
        cfg.val_cfg.bank_dataloader.dataset.subset = dict(labels=[1], per_class=3)
        with pytest.raises(ConfigError, match='^val_cfg.bank_dataloader: has images of class 0 al'):
            preflight(cfg, *FIELDS)


def test_embedder_of_a_classifier():
    """The feature of a classifier with a head is the input of its last layer."""
    torch.manual_seed(0)
    model = MODELS.build(resnet()).eval()
    images = torch.randn(2, 3, 32, 32)
    assert_close(embedder(model)(images), model.extract_feat(images)[-1])
    assert_close(model.head.fc(embedder(model)(images)), model(images))

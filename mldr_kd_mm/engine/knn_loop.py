"""Validation and test loops for students without a head."""

from __future__ import annotations

import copy
import re
from collections.abc import Callable, Mapping
from typing import Any

import torch
from mmengine.runner import Runner, TestLoop, ValLoop
from mmengine.runner.amp import autocast
from mmpretrain.structures import DataSample
from torch import Tensor, nn

from mldr_kd_mm.evaluation.knn import (
    NEIGHBOURS,
    TEMPERATURE,
    KNNClassifier,
    check_bank,
    embed_all,
    embedder,
)
from mldr_kd_mm.models.losses.common import gather_batch
from mldr_kd_mm.registry import LOOPS
from mldr_kd_mm.utils.dist import unwrap_model
from mldr_kd_mm.utils.errors import ConfigError, check_above_zero, check_positive
from mldr_kd_mm.utils.logging import plural, tell

FIELD = 'bank_dataloader'

_REPEATING = re.compile(r"(Repeat|ClassBalanced)Dataset('>)?$")

Predict = Callable[[Any], list[DataSample]]


class _KNN:
    """Base of the two loops: predictions from a bank of labelled features."""

    stage: str

    def __init__(
        self,
        runner: Runner,
        dataloader: Any,
        evaluator: Any,
        fp16: bool = False,
        bank_dataloader: dict | None = None,
        k: int = NEIGHBOURS,
        temperature: float = TEMPERATURE,
    ) -> None:
        check_positive(k=k)
        check_above_zero(temperature=temperature)
        config = bank_config(runner.cfg, self.stage) if bank_dataloader is None else bank_dataloader
        # Each image once, on any number of processes.
        sampler = dict(type='DefaultSampler', shuffle=False, round_up=False)
        self.bank = runner.build_dataloader(dict(config, sampler=sampler), seed=runner.seed)
        check_bank_of(self.bank.dataset, self.stage)
        super().__init__(runner, dataloader, evaluator, fp16)
        self.k = k
        self.temperature = temperature
        self._predict: Predict | None = None
        images = plural(len(self.bank.dataset), 'labelled image')
        tell(f'accuracy: kNN with the {k} nearest of {images}, temperature {temperature}')

    @torch.no_grad()
    def fit(self, preprocess: nn.Module, embed: Callable[[Tensor], Tensor]) -> Predict:
        """Embed the labelled images.

        Args:
            preprocess: The data preprocessor of the model.
            embed: Function from preprocessed images to features.

        Returns:
            A function that sets ``pred_score`` and ``pred_label`` of the samples of a batch.
        """
        with autocast(enabled=self.fp16):
            bank = gather_batch(embed_all(self.bank, preprocess, embed))
        metainfo = getattr(self.bank.dataset, 'metainfo', None) or {}
        classes = len(metainfo.get('classes') or ())
        classify = KNNClassifier(*bank, self.k, self.temperature, classes)

        def predict(data_batch: Any) -> list[DataSample]:
            data = preprocess(data_batch, False)
            with autocast(enabled=self.fp16):
                votes = classify(embed(data['inputs']))
            for sample, scores in zip(data['data_samples'], votes, strict=True):
                sample.set_pred_score(scores).set_pred_label(scores.argmax(keepdim=True))
            return data['data_samples']

        return predict

    @torch.no_grad()
    def run_iter(self, idx: int, data_batch: Any) -> None:
        """Predict a batch; before the first one, embed the labelled images."""
        runner = self.runner
        if idx == 0:
            model = unwrap_model(runner.model)
            self._predict = self.fit(model.data_preprocessor, embedder(model))
        batch = dict(batch_idx=idx, data_batch=data_batch)
        runner.call_hook(f'before_{self.stage}_iter', **batch)
        outputs = self._predict(data_batch)
        self.evaluator.process(data_samples=outputs, data_batch=data_batch)
        runner.call_hook(f'after_{self.stage}_iter', **batch, outputs=outputs)

    def run(self) -> dict:
        """Run the loop, and forget the features of the labelled images."""
        try:
            return super().run()
        finally:
            self._predict = None


@LOOPS.register_module()
class KNNLoop(_KNN, ValLoop):
    """Validate the features of a model by k-nearest-neighbour (kNN) classification.

    For students without a head. The metrics of ``val_evaluator``, such as ``Accuracy``, get the
    weighted share of each class among the neighbours as its score; see
    :class:`mldr_kd_mm.evaluation.knn.KNNClassifier`.

    Args:
        runner: The Runner.
        dataloader: Data loader of the images to classify, or its config.
        evaluator: Evaluator, or configs of metrics.
        fp16: Whether to compute the features in half precision.
        bank_dataloader: Config of the data loader of the labelled images. None: the training images
            with the validation pipeline.
        k: Number of neighbours.
        temperature: Temperature of the weights of the neighbours.

    Raises:
        ConfigError: If a number is not positive, or the labelled images are missing or of one
            class.
    """

    stage = 'val'


@LOOPS.register_module()
class KNNTestLoop(_KNN, TestLoop):
    """:class:`KNNLoop` for ``test_cfg``."""

    stage = 'test'


def bank_config(cfg: Mapping[str, Any], stage: str = 'val') -> dict[str, Any]:
    """Return the config of the loader of the training images with the validation pipeline.

    Args:
        cfg: Config of the run.
        stage: ``'val'`` or ``'test'``, the loop that needs it.

    Raises:
        ConfigError: If the training set has no pipeline of its own.
    """
    loader = copy.deepcopy(cfg.get(f'{stage}_dataloader'))
    pipeline = isinstance(loader, Mapping) and (loader.get('dataset') or {}).get('pipeline')
    train = (cfg.get('train_dataloader') or {}).get('dataset')
    dataset = pipeline and _with_pipeline(copy.deepcopy(train), pipeline)
    if not dataset:
        raise ConfigError(
            f'{stage}_cfg.{FIELD}: must be set to the loader of labelled images, as '
            'train_dataloader.dataset has no pipeline that can be replaced'
        )
    return {**loader, 'dataset': dataset}


def _with_pipeline(dataset: Any, pipeline: list) -> dict[str, Any] | None:
    """Return the config of a data set with another pipeline, each image once; None without one."""
    if not isinstance(dataset, Mapping):
        return None
    if 'labeled' in dataset:
        return _with_pipeline(dataset['labeled'], pipeline)
    if 'dataset' in dataset:
        inner = _with_pipeline(dataset['dataset'], pipeline)
        repeats = _REPEATING.search(str(dataset.get('type')))
        return inner if repeats or inner is None else {**dataset, 'dataset': inner}
    return {**dataset, 'pipeline': pipeline} if 'pipeline' in dataset else None


def check_bank_of(dataset: Any, stage: str) -> None:
    """Check the labels of a data set, if it lists them, see :func:`check_bank`."""
    read = getattr(dataset, 'get_gt_labels', None)
    if read is None:
        return
    try:
        labels = torch.as_tensor(read())
    except (KeyError, TypeError, ValueError):
        raise ConfigError(
            f'{stage}_cfg.{FIELD}: must have images with one label each; set it to the loader of '
            'labelled images'
        ) from None
    check_bank(labels, f'{stage}_cfg.{FIELD}')

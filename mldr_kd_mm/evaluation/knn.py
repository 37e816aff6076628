"""Classification of features by their nearest neighbours (kNN)."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mldr_kd_mm.models.distillers.distiller import Distiller
from mldr_kd_mm.models.taps.recorder import FeatureRecorder
from mldr_kd_mm.models.taps.tapped_model import TappedModel
from mldr_kd_mm.utils.errors import ConfigError

NEIGHBOURS = 20
TEMPERATURE = 0.07
_BLOCK = 16384  # entries of the bank that a batch is compared with at once


class KNNClassifier:
    r"""Classify features by their nearest neighbours in a bank of labelled features.

    Each of the k entries with the largest cosine similarity s votes for its class with the weight
    :math:`\exp(s / \tau)`. The bank is processed in blocks, so that the memory for a batch does not
    grow with it.

    Source: the evaluation of DINO (arXiv 2104.14294) and of instance discrimination
    (arXiv 1805.01978), with k = 20 and temperature 0.07.

    Args:
        features: Features of the bank (N, D).
        labels: Their classes (N,).
        k: Number of neighbours, or all if the bank has fewer.
        temperature: Temperature of the weights.
        num_classes: Number of classes C. None: the largest label plus 1.

    Raises:
        ConfigError: If the bank has fewer than two classes.
    """

    def __init__(
        self,
        features: Tensor,
        labels: Tensor,
        k: int = NEIGHBOURS,
        temperature: float = TEMPERATURE,
        num_classes: int | None = None,
    ) -> None:
        check_bank(labels, 'labels')
        self.features = F.normalize(features.float(), dim=-1)
        self.labels = labels
        self.k = min(k, len(labels))
        self.temperature = temperature
        self.num_classes = max(num_classes or 0, int(labels.max()) + 1)

    @torch.no_grad()
    def __call__(self, features: Tensor) -> Tensor:
        """Return the weighted share of each class among the neighbours (B, C); the sum is 1.

        Args:
            features: Features (B, D).
        """
        features = F.normalize(features.float(), dim=-1)
        nearest = features.new_empty(len(features), 0)
        labels = self.labels.new_empty(len(features), 0)
        for block, of_block in zip(
            self.features.split(_BLOCK), self.labels.split(_BLOCK), strict=True
        ):
            found = features @ block.T
            nearest = torch.cat([nearest, found], 1)
            labels = torch.cat([labels, of_block.expand(len(features), -1)], 1)
            nearest, places = nearest.topk(min(self.k, nearest.shape[1]), 1)
            labels = labels.gather(1, places)
        votes = features.new_zeros(len(features), self.num_classes)
        votes.scatter_add_(1, labels, (nearest / self.temperature).softmax(1))
        return votes


def check_bank(labels: Tensor, field: str) -> None:
    """Check that labelled images can classify others.

    Args:
        labels: Classes of the images (N,).
        field: Name of the config's field or argument that they come from.

    Raises:
        ConfigError: If they have fewer than two classes.
    """
    if not len(labels):
        raise ConfigError(f'{field}: has no labelled image; must have images of two classes')
    if (labels == labels[0]).all():
        raise ConfigError(
            f'{field}: has images of class {int(labels[0])} alone; must have images of two classes'
        )


@torch.no_grad()
def embed_all(
    batches: Iterable[Any], preprocess: nn.Module, embed: Callable[[Tensor], Tensor]
) -> tuple[Tensor, Tensor]:
    """Embed labelled images.

    Args:
        batches: Batches of a data loader.
        preprocess: The data preprocessor of the model.
        embed: Function from preprocessed images (B, 3, H, W) to features (B, D).

    Returns:
        Features (N, D) and labels (N,), on the device of the features.
    """
    features, labels = [], []
    for batch in batches:
        data = preprocess(batch, False)
        features.append(embed(data['inputs']).float())
        labels += [sample.gt_label for sample in data['data_samples']]
    return torch.cat(features), torch.cat(labels).to(features[0].device)


def embedder(model: nn.Module) -> Callable[[Tensor], Tensor]:
    """Return a function from preprocessed images (B, 3, H, W) to a model's features (B, D).

    Args:
        model: A Distiller, whose student is used, or a classifier.
    """
    if isinstance(model, Distiller):
        return model.embed
    tapped = TappedModel(model, FeatureRecorder(taps={}))
    return lambda images: tapped(images, ['feature'])['feature']

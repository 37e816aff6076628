"""Logistic regression on features, to measure how linearly separable classes are in them."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn


class LinearProbe:
    """A linear classifier of features, fitted by logistic regression.

    Features are standardised with the mean and standard deviation of the training features. The
    objective is scikit-learn's: the sum of the cross-entropies, plus half the squared norm of the
    weights without the bias. L-BFGS minimises it over all images at once, on the device of the
    features.

    Args:
        features: Features of the training images (N, D).
        labels: Their classes (N,).
        max_iter: Maximum number of iterations of L-BFGS.
    """

    def __init__(self, features: Tensor, labels: Tensor, max_iter: int = 500) -> None:
        self.mean = features.mean(0)
        # A dead unit is constant.
        self.std = features.std(0, correction=0).clamp_min(1e-6)
        width, classes = features.shape[1], int(labels.max()) + 1
        self.linear = nn.Linear(width, classes).to(features)
        nn.init.zeros_(self.linear.weight)
        nn.init.zeros_(self.linear.bias)
        self._fit(self._standardize(features), labels, max_iter)

    @torch.no_grad()
    def __call__(self, features: Tensor) -> Tensor:
        """Return the classes (B,) of features (B, D)."""
        return self.linear(self._standardize(features)).argmax(1)

    def _standardize(self, features: Tensor) -> Tensor:
        return (features - self.mean) / self.std

    def _fit(self, features: Tensor, labels: Tensor, max_iter: int) -> None:
        optimizer = torch.optim.LBFGS(
            self.linear.parameters(),
            max_iter=max_iter,
            tolerance_grad=1e-6,
            line_search_fn='strong_wolfe',
        )

        def loss() -> Tensor:
            optimizer.zero_grad()
            penalty = self.linear.weight.square().sum() / (2 * len(features))
            value = F.cross_entropy(self.linear(features), labels) + penalty
            value.backward()
            return value

        optimizer.step(loss)

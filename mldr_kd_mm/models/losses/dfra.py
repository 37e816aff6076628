"""Decoupled Finegrained Relation Alignment (DFRA), the loss of MLDR-KD."""

from __future__ import annotations

import functools
import logging
from collections.abc import Collection

import torch
from mmengine.logging import print_log
from torch import Tensor, nn

from mldr_kd_mm.models.losses.common import (
    check_logits,
    full_precision,
    gather_batch,
    kl_div,
    standardize,
)
from mldr_kd_mm.models.losses.relation import FORMS, RELATIONS, compare_relations
from mldr_kd_mm.registry import MODELS
from mldr_kd_mm.utils.errors import ConfigError, check_above_zero, check_not_negative, check_switch

# Up to this number, DFRA without a bound can diverge at common learning rates (docs/stability.md).
_FEW_CLASSES = 20

TERMS = (*RELATIONS, 'probability')


@MODELS.register_module()
class DFRALoss(nn.Module):
    r"""Match class-wise and sample-wise relations of logits, and the class probabilities.

    With the logits :math:`z` (B, C) of each model, divided by the temperature, and
    :math:`\kappa = C^{-1/2}`:

    - Class relation: :math:`R = \kappa z_b z_b^\top` (C, C) for each sample.
    - Sample relation: :math:`R = \kappa z_c z_c^\top` (B, B) for each class, with the same
      :math:`\kappa`.
    - A softmax over the rows turns each column of a relation into a distribution. The term of a
      relation is KL(teacher || student), averaged over all columns.
    - Probability: KL(teacher || student) of the class probabilities, averaged over the batch.

    The loss is class relation + sample relation + alpha * probability. It has no factor of
    temperature squared, and logits are not centred.

    Source: MLDR-KD (arXiv 2502.06189), section "Decoupled Finegrained Relation Alignment", and the
    authors' release. Added here: the weights of the relations, for ablations, ``max_relation``, and
    ``standardize`` from logit standardisation (arXiv 2403.01427).

    Args:
        temperature: Divides the logits of both models; above 0.
        alpha: Weight of the probability term; at least 0.
        class_weight: Weight of the class relation; at least 0.
        sample_weight: Weight of the sample relation; at least 0.
        standardize: Whether to standardise each sample's logits to mean 0 and standard deviation 1
            first.
        relation: ``'dense'`` computes the relations block by block. ``'linear'`` avoids them, see
            :mod:`mldr_kd_mm.models.losses.relation`. ``'triton'`` computes them tile by tile on a
            GPU, and is ``'dense'`` on the CPU. ``'auto'`` takes the fastest one. Results agree to
            rounding error, and no relation is kept for the backward pass.
        max_relation: Upper bound of the root mean square of the teacher's relations, kappa *
            mean(z^2) over batch and classes. Before they enter the relations, larger logits of the
            teacher are scaled down to it, and those of each head to the teacher's; the probability
            term is unchanged. None: no bound, the paper's form. Its gradient grows with the logits,
            and with few classes training diverges.
        gather: Whether to relate the samples of all processes in training, not of each process
            alone. Loss and gradient, as averaged by DistributedDataParallel, then equal those of
            one process on the joined batch. Each process computes all of it.

    Raises:
        ConfigError: If an argument is out of range or unknown.
    """

    compares_logits = True

    def __init__(
        self,
        temperature: float = 1.0,
        alpha: float = 2.0,
        class_weight: float = 1.0,
        sample_weight: float = 1.0,
        standardize: bool = False,
        relation: str = 'auto',
        max_relation: float | None = None,
        gather: bool = False,
    ) -> None:
        super().__init__()
        check_above_zero(temperature=temperature)
        if max_relation is not None:
            check_above_zero(max_relation=max_relation)
        check_not_negative(alpha=alpha, class_weight=class_weight, sample_weight=sample_weight)
        if not alpha + class_weight + sample_weight:
            raise ConfigError(
                f'alpha={alpha}, class_weight={class_weight}, sample_weight={sample_weight}: at '
                'least one must be above 0'
            )
        if relation not in FORMS:
            raise ConfigError(f'relation={relation!r}: must be one of {", ".join(FORMS)}')
        check_switch(standardize=standardize, gather=gather)
        self.relation = relation
        self.temperature = temperature
        self.standardize = standardize
        self.max_relation = max_relation
        self._has_warned = max_relation is not None
        self.gather = gather
        self.alpha = alpha
        self.class_weight = class_weight
        self.sample_weight = sample_weight

    def forward(self, student: Tensor, teacher: Tensor) -> Tensor:
        """Compute the loss.

        Args:
            student: Logits (B, C), or (K, B, C) of K heads.
            teacher: Logits (B, C); no gradient flows into them.

        Returns:
            A scalar, or (K,), one value per head.

        Raises:
            ConfigError: If the shapes do not fit.
        """
        if self.training and not self._has_warned and not torch.compiler.is_compiling():
            self._warn_of_few_classes(student.shape[-1])
        weights = dict(zip(TERMS, (self.class_weight, self.sample_weight, self.alpha), strict=True))
        terms = self.terms(student, teacher, [name for name in weights if weights[name]])
        # On a GPU each product would be a launch of its own.
        weighted = [t if weights[name] == 1 else weights[name] * t for name, t in terms.items()]
        return functools.reduce(torch.add, weighted)

    @full_precision
    def terms(
        self, student: Tensor, teacher: Tensor, names: Collection[str] = TERMS
    ) -> dict[str, Tensor]:
        """Compute the terms of the loss without their weights.

        Args:
            student: Logits (B, C), or (K, B, C) of K heads.
            teacher: Logits (B, C).
            names: Terms to compute, of ``TERMS``.

        Returns:
            Name -> scalar, or (K,).
        """
        check_logits(student, teacher)
        if self.gather and self.training:
            student, teacher = gather_batch([student, teacher], dim=-2)
        if self.standardize:
            student, teacher = standardize(student), standardize(teacher)
        if self.temperature != 1:
            student, teacher = student / self.temperature, teacher / self.temperature
        # The number of classes scales both relations.
        kappa = student.shape[-1] ** -0.5
        relations = [name for name in names if name in RELATIONS]
        terms = compare_relations(
            student, teacher, kappa, relations, self.relation, self.max_relation
        )
        if 'probability' in names:
            terms['probability'] = kl_div(student, teacher).mean(-1)
        return {name: terms[name] for name in names}

    def _warn_of_few_classes(self, num_classes: int) -> None:
        self._has_warned = True
        if num_classes <= _FEW_CLASSES:
            print_log(
                f'DFRALoss: max_relation=None: the gradient has no bound, and with {num_classes} '
                'classes training can diverge; set max_relation=4.0 (--method mldr)',
                'current',
                logging.WARNING,
            )

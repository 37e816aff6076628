"""Decoupled Finegrained Relation Alignment, the loss of MLDR-KD."""

from __future__ import annotations

from collections.abc import Collection
from functools import partial

from torch import Tensor, nn

from mldr_kd_mm.models.losses.common import (
    check_logits,
    full_precision,
    gather_batch,
    kl_div,
    standardize,
)
from mldr_kd_mm.models.losses.relation import FORMS, relation_kl
from mldr_kd_mm.registry import MODELS
from mldr_kd_mm.utils.errors import ConfigError, check_above_zero, check_not_negative, check_switch

TERMS = ('class_relation', 'sample_relation', 'probability')


@MODELS.register_module()
class DFRALoss(nn.Module):
    r"""Aligns class-wise and sample-wise relations of logits beside the probabilities.

    With logits :math:`z` of shape (B, C), both divided by the temperature, and
    :math:`\kappa = C^{-1/2}`:

    - class relation: :math:`R = \kappa z_b z_b^\top` for each sample, C x C;
    - sample relation: :math:`R = \kappa z_c z_c^\top` for each class, B x B, the same
      :math:`\kappa`;
    - each column of a relation is made a distribution by a softmax over its rows, and compared by
      KL(teacher || student), averaged over all columns of the batch;
    - probability: KL(teacher || student) of the class distributions, averaged over the batch.

    The loss is class relation + sample relation + alpha * probability. There is no factor of
    temperature squared, and logits are not centred.

    Source: MLDR-KD (arXiv 2502.06189), section "Decoupled Finegrained Relation Alignment", and the
    authors' release. What it lacks: the weights of the relations, for ablations, and
    ``standardize``, which is logit standardisation's (arXiv 2403.01427).

    Args:
        temperature: Divides the logits of both; above 0.
        alpha: Weight of the probability term; at least 0.
        class_weight: Weight of the class relation; at least 0.
        sample_weight: Weight of the sample relation; at least 0.
        standardize: Whether to bring each sample's logits to mean 0 and standard deviation 1 first.
        relation: ``'dense'`` makes the relations, block by block; ``'linear'`` does not, see
            :mod:`mldr_kd_mm.models.losses.relation`; ``'auto'`` takes what is faster. All give the
            same to rounding error, and none keeps a relation for the backward pass.
        gather: Whether the samples of all processes are related while training, not those of each
            process alone. The loss, and the parameters' gradient as DistributedDataParallel
            averages it, are those of one process on the joined batch; each process computes all of
            it. Without other processes nothing changes.

    Raises:
        ConfigError: For a temperature or a weight out of range, an unknown ``relation``, or a
            switch that is neither True nor False.
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
        gather: bool = False,
    ) -> None:
        super().__init__()
        check_above_zero(temperature=temperature)
        check_not_negative(alpha=alpha, class_weight=class_weight, sample_weight=sample_weight)
        if not alpha + class_weight + sample_weight:
            raise ConfigError(
                f'alpha={alpha}, class_weight={class_weight}, sample_weight={sample_weight}: one '
                'must be above 0'
            )
        if relation not in FORMS:
            raise ConfigError(f'relation={relation!r}: must be one of {", ".join(FORMS)}')
        check_switch(standardize=standardize, gather=gather)
        self.relation = relation
        self.temperature = temperature
        self.standardize = standardize
        self.gather = gather
        self.alpha = alpha
        self.class_weight = class_weight
        self.sample_weight = sample_weight

    def forward(self, student: Tensor, teacher: Tensor) -> Tensor:
        """Compare the student's logits with the teacher's.

        Args:
            student: Logits (B, C), or (K, B, C) of K heads.
            teacher: Logits (B, C); no gradient flows into them.

        Returns:
            A scalar, or (K,), one value a head.

        Raises:
            ConfigError: If the shapes do not fit.
        """
        weights = {
            'class_relation': self.class_weight,
            'sample_relation': self.sample_weight,
            'probability': self.alpha,
        }
        terms = self.terms(student, teacher, [name for name in weights if weights[name]])
        return sum(weights[name] * term for name, term in terms.items())

    @full_precision
    def terms(
        self, student: Tensor, teacher: Tensor, names: Collection[str] = TERMS
    ) -> dict[str, Tensor]:
        """The terms of the loss, not weighted.

        Args:
            student: Logits (B, C), or (K, B, C) of K heads.
            teacher: Logits (B, C).
            names: Which terms to compute.

        Returns:
            Name -> a scalar or (K,).
        """
        check_logits(student, teacher)
        if self.gather and self.training:
            student, teacher = gather_batch([student, teacher], dim=-2)
        if self.standardize:
            student, teacher = standardize(student), standardize(teacher)
        student, teacher = student / self.temperature, teacher / self.temperature
        # Both relations are scaled by the number of classes.
        compare = partial(relation_kl, scale=student.shape[-1] ** -0.5, form=self.relation)
        terms = {
            'class_relation': lambda: compare(student, teacher),
            'sample_relation': lambda: compare(student.mT, teacher.mT),
            'probability': lambda: kl_div(student, teacher).mean(-1),
        }
        return {name: terms[name]() for name in names}

"""Contrastive representation distillation, with its memory bank."""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from mmengine import dist
from torch import Tensor, nn

from mldr_kd_mm.models.losses.common import (
    check_features,
    check_widths,
    full_precision,
    gather_batch,
)
from mldr_kd_mm.registry import MODELS
from mldr_kd_mm.utils.errors import ConfigError, check_positive, is_number


@MODELS.register_module()
class CRDLoss(nn.Module):
    r"""Tells a sample's feature of one model from other samples' features of the other model.

    Linear layers and L2 normalisation give embeddings :math:`v_s, v_t`. A memory bank holds one
    embedding a sample of the training set for each model. With N samples, K negatives and a
    temperature :math:`\tau`, the critic of sample i for an entry j of the other model's bank is

    .. math:: h(i, j) = \frac{g}{g + K / N}, \qquad g = \exp(v_i^\top m_j / \tau) / Z,

    and the loss of noise-contrastive estimation, for both models and averaged over the batch,

    .. math:: -\log h(i, i) - \sum_{k=1}^{K} \log(1 - h(i, j_k)).

    Z is the mean of :math:`\exp(\cdot / \tau)` over the first batch, times N, and fixed from then
    on. After each step of training the batch's entries move towards its embeddings, but for those
    that are not finite.

    Under several processes all update the bank with the batches of all, so that each has the same.
    Bank and Z are part of the checkpoint. The negatives are a function of the batch's indices:
    nothing of the global random numbers is used, and a resumed run draws the same.

    Source: Contrastive Representation Distillation (arXiv 1910.10699), equations 5 to 19, and the
    authors' code, which weighs it with 0.8. One difference: negatives are any other samples, where
    that code can also leave out those of the same class.

    Args:
        num_samples: N, the size of the training set; a sample's index is its ``sample_idx``.
        negatives: K, drawn with replacement; at most N - 1.
        temperature: At least 0.02, so that exp(1 / temperature) is a number of float32.
        momentum: How much of an entry is kept when it is updated; from 0 to below 1.
        dim: Width of the embeddings.
        student_width: D_s. The Distiller finds it when it is None.
        teacher_width: D_t. The Distiller finds it when it is None.

    Raises:
        ConfigError: For a value out of range, or a width that is missing.
    """

    def __init__(
        self,
        num_samples: int,
        negatives: int = 16384,
        temperature: float = 0.07,
        momentum: float = 0.5,
        dim: int = 128,
        student_width: int | None = None,
        teacher_width: int | None = None,
    ) -> None:
        super().__init__()
        check_positive(num_samples=num_samples, negatives=negatives, dim=dim)
        check_widths(student_width, teacher_width)
        if negatives >= num_samples:
            raise ConfigError(
                f'negatives={negatives}: must be at most {num_samples - 1}, as there are '
                f'num_samples={num_samples} and a sample is not its own negative'
            )
        if not is_number(temperature) or not 0.02 <= temperature < math.inf:
            raise ConfigError(f'temperature={temperature!r}: must be a number of 0.02 or more')
        if not is_number(momentum) or not 0 <= momentum < 1:
            raise ConfigError(f'momentum={momentum!r}: must be from 0 to below 1')
        self.num_samples = num_samples
        self.negatives = negatives
        self.temperature = temperature
        self.momentum = momentum
        self.embed_student = nn.Linear(student_width, dim)
        self.embed_teacher = nn.Linear(teacher_width, dim)
        bound = math.sqrt(3 / dim)
        for name in ('student_bank', 'teacher_bank'):
            self.register_buffer(name, torch.empty(num_samples, dim).uniform_(-bound, bound))
        # Of the student's embeddings against the teacher's bank, and the other way round.
        self.register_buffer('normalizers', torch.zeros(2))

    @full_precision
    def forward(self, student: Tensor, teacher: Tensor, index: Tensor) -> Tensor:
        """Contrast the features of a batch with the banks; in training, update the banks.

        Args:
            student: Features (B, D_s).
            teacher: Features (B, D_t); no gradient flows into them.
            index: Of the samples in the training set, (B,); on the CPU it is checked.

        Returns:
            A scalar.

        Raises:
            ConfigError: If the features are not vectors of the same samples, there are more or
                fewer indices, or one is not below ``num_samples``.
        """
        check_features(student, teacher)
        self._check_index(index, len(student))
        entries = self._draw(index)
        student = F.normalize(self.embed_student(student), dim=-1)
        teacher = F.normalize(self.embed_teacher(teacher), dim=-1)
        similarities = torch.stack(
            [
                self._similarities(student, self.teacher_bank, entries),
                self._similarities(teacher, self.student_bank, entries),
            ]
        )
        if self.training:
            self._set_normalizers(similarities.detach())
            self._update(index.to(student.device), student.detach(), teacher.detach())
        return self._contrast(similarities)

    def _check_index(self, index: Tensor, batch: int) -> None:
        if index.shape != (batch,):
            raise ConfigError(f'index: has the shape {tuple(index.shape)}: must be ({batch},)')
        if index.device.type != 'cpu':
            return
        wrong = index[(index < 0) | (index >= self.num_samples)]
        if len(wrong):
            raise ConfigError(
                f'num_samples={self.num_samples}: a sample has the index {int(wrong[0])}: must be '
                'the size of the training set'
            )

    def _draw(self, index: Tensor) -> Tensor:
        """For each sample its own index and those of K others: (B,) -> (B, 1 + K)."""
        device = self.student_bank.device
        generator = torch.Generator(device).manual_seed(hash(tuple(index.tolist())) % 2**63)
        shape = (len(index), self.negatives)
        others = torch.randint(self.num_samples - 1, shape, generator=generator, device=device)
        own = index.to(device).unsqueeze(1)
        return torch.cat([own, others + (others >= own)], 1)

    def _similarities(self, embedding: Tensor, bank: Tensor, entries: Tensor) -> Tensor:
        """exp(v m / tau) for some of a bank's entries: (B, 1 + K)."""
        # All B * N products at once are cheaper than B * K gathered embeddings. The bank is copied,
        # since it moves before the backward pass.
        products = embedding @ bank.clone().T
        return (products.gather(1, entries) / self.temperature).exp()

    @torch.no_grad()
    def _set_normalizers(self, similarities: Tensor) -> None:
        """Fix Z by the first batch of all processes whose mean is finite."""
        found = similarities.mean((1, 2)) * self.num_samples
        dist.all_reduce(found, 'mean')
        found = torch.where(found.isfinite(), found, 0.0)
        self.normalizers.copy_(torch.where(self.normalizers > 0, self.normalizers, found))

    def _contrast(self, similarities: Tensor) -> Tensor:
        """The loss of noise-contrastive estimation: (2, B, 1 + K), the positive first -> scalar."""
        # Before the first step of training there is no Z: any will do.
        normalizers = torch.where(self.normalizers > 0, self.normalizers, self.num_samples)
        density = similarities / normalizers.view(2, 1, 1)
        noise = self.negatives / self.num_samples
        positive, negative = density[..., 0], density[..., 1:]
        log_positive = (positive / (positive + noise)).log()
        log_negative = (noise / (negative + noise)).log()
        return -(log_positive + log_negative.sum(-1)).mean(-1).sum()

    @torch.no_grad()
    def _update(self, index: Tensor, student: Tensor, teacher: Tensor) -> None:
        """Move the entries of the batches of all processes towards their embeddings."""
        index, student, teacher = gather_batch([index, student, teacher])
        # A sampler may repeat samples to fill the last batch: the first of them counts, everywhere.
        first = (index.unsqueeze(0) == index.unsqueeze(1)).int().argmax(1)
        for bank, embedding in ((self.student_bank, student), (self.teacher_bank, teacher)):
            old = bank[index]
            moved = F.normalize(torch.lerp(embedding[first], old, self.momentum), dim=-1)
            # A step that is not finite can be skipped, but what it left here would stay.
            bank[index] = torch.where(moved.isfinite().all(-1, keepdim=True), moved, old)

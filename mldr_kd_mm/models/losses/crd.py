"""Contrastive representation distillation (CRD) with a memory bank."""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from mmengine import dist
from torch import Tensor

from mldr_kd_mm.models.losses.common import full_precision, gather_batch
from mldr_kd_mm.models.losses.embedding import EmbeddingLoss
from mldr_kd_mm.registry import MODELS
from mldr_kd_mm.utils.device import to_device
from mldr_kd_mm.utils.errors import ConfigError, check_positive, is_number


@MODELS.register_module()
class CRDLoss(EmbeddingLoss):
    r"""Contrast each sample's feature with the other model's features of other samples.

    Linear layers and L2 normalisation give embeddings :math:`v_s, v_t`. For each model a memory
    bank holds one embedding per training sample. With N samples, K negatives and temperature
    :math:`\tau`, the critic of sample i for entry j of the other model's bank is

    .. math:: h(i, j) = \frac{g}{g + K / N}, \qquad g = \exp(v_i^\top m_j / \tau) / Z,

    and the loss, by noise-contrastive estimation, summed over both models and averaged over the
    batch, is

    .. math:: -\log h(i, i) - \sum_{k=1}^{K} \log(1 - h(i, j_k)).

    Z is N times the mean of :math:`\exp(\cdot / \tau)` over the first batch and stays fixed. After
    each training step the entries of the batch move towards its embeddings. An entry that would
    become NaN or infinite is left unchanged.

    With several processes, each updates its bank with the batches of all, so that the banks stay
    equal. Banks and Z are part of the checkpoint. The negatives are a function of the batch's
    indices: they use no global random numbers, and a resumed run draws the same ones.

    Source: Contrastive Representation Distillation (arXiv 1910.10699), equations 5 to 19, and the
    authors' code, with weight 0.8. Two differences: negatives are any other samples, while that
    code can exclude those of the same class; and it adds 1e-7 to the divisors of h and 1 - h, which
    are at least K / N without it.

    Args:
        num_samples: Size N of the training set. A sample's index is its ``sample_idx``.
        negatives: Number K of negatives, drawn with replacement; at most N - 1.
        temperature: Temperature; at least 0.02, so that exp(1 / temperature) fits into float32.
        momentum: Share of an entry that is kept when it is updated; at least 0 and below 1.
        dim: Width of the embeddings.
        student_width: Width D_s. None: the Distiller sets it.
        teacher_width: Width D_t. None: the Distiller sets it.

    Raises:
        ConfigError: If an argument is out of range, or a width is missing.
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
        super().__init__(student_width, teacher_width, dim)
        check_positive(num_samples=num_samples, negatives=negatives)
        if negatives >= num_samples:
            raise ConfigError(
                f'negatives={negatives}: must be at most num_samples - 1 = {num_samples - 1}'
            )
        if not is_number(temperature) or not 0.02 <= temperature < math.inf:
            raise ConfigError(f'temperature={temperature!r}: must be a number of at least 0.02')
        if not is_number(momentum) or not 0 <= momentum < 1:
            raise ConfigError(f'momentum={momentum!r}: must be at least 0 and below 1')
        self.num_samples = num_samples
        self.negatives = negatives
        self.temperature = temperature
        self.momentum = momentum
        bound = math.sqrt(3 / dim)
        for name in ('student_bank', 'teacher_bank'):
            self.register_buffer(name, torch.empty(num_samples, dim).uniform_(-bound, bound))
        # Z of the student's embeddings with the teacher's bank, and of the reverse.
        self.register_buffer('normalizers', torch.zeros(2))

    @full_precision
    def forward(self, student: Tensor, teacher: Tensor, index: Tensor) -> Tensor:
        """Contrast the features of a batch with the banks; in training, update the banks.

        Args:
            student: Features (B, D_s).
            teacher: Features (B, D_t); no gradient flows into them.
            index: Positions of the samples in the training set (B,). Checked on the CPU only.

        Returns:
            A scalar.

        Raises:
            ConfigError: If the features are not vectors (B, D) of equal batch size, or an index is
                missing or out of range.
        """
        student, teacher = (F.normalize(v, dim=-1) for v in self.embed(student, teacher))
        self._check_index(index, len(student))
        entries = self._draw(index)
        similarities = torch.stack(
            [
                self._similarities(student, self.teacher_bank, entries),
                self._similarities(teacher, self.student_bank, entries),
            ]
        )
        if self.training:
            self._set_normalizers(similarities.detach())
            self._update(entries[:, 0], student.detach(), teacher.detach())
        return self._contrast(similarities)

    def _check_index(self, index: Tensor, batch: int) -> None:
        if index.shape != (batch,):
            raise ConfigError(f'index: has shape {tuple(index.shape)}; must be ({batch},)')
        if index.device.type != 'cpu':
            return
        wrong = index[(index < 0) | (index >= self.num_samples)]
        if len(wrong):
            raise ConfigError(
                f'num_samples={self.num_samples}: must be the size of the training set; a sample '
                f'has index {int(wrong[0])}'
            )

    def _draw(self, index: Tensor) -> Tensor:
        """Return each sample's own index and those of K others: (B,) -> (B, 1 + K)."""
        device = self.student_bank.device
        generator = torch.Generator(device).manual_seed(hash(tuple(index.tolist())) % 2**63)
        shape = (len(index), self.negatives)
        others = torch.randint(self.num_samples - 1, shape, generator=generator, device=device)
        own = to_device(index, device).unsqueeze(1)
        return torch.cat([own, others + (others >= own)], 1)

    def _similarities(self, embedding: Tensor, bank: Tensor, entries: Tensor) -> Tensor:
        """Compute exp(v m / tau) for selected entries of a bank: (B, 1 + K)."""
        # All B * N products at once are cheaper than gathering B * K embeddings. The bank is copied
        # because it changes before the backward pass.
        products = embedding @ bank.clone().T
        return (products.gather(1, entries) / self.temperature).exp()

    @torch.no_grad()
    def _set_normalizers(self, similarities: Tensor) -> None:
        """Set Z from the first batch of all processes whose mean is finite."""
        found = similarities.mean((1, 2)) * self.num_samples
        dist.all_reduce(found, 'mean')
        found = torch.where(found.isfinite(), found, 0.0)
        self.normalizers.copy_(torch.where(self.normalizers > 0, self.normalizers, found))

    def _contrast(self, similarities: Tensor) -> Tensor:
        """Compute the loss from similarities (2, B, 1 + K), the positive first."""
        # Before the first training step Z is unknown, and any value works.
        normalizers = torch.where(self.normalizers > 0, self.normalizers, self.num_samples)
        density = similarities / normalizers.view(2, 1, 1)
        noise = self.negatives / self.num_samples
        positive, negative = density[..., 0], density[..., 1:]
        log_positive = (positive / (positive + noise)).log()
        log_negative = (noise / (negative + noise)).log()
        return -(log_positive + log_negative.sum(-1)).mean(-1).sum()

    @torch.no_grad()
    def _update(self, index: Tensor, student: Tensor, teacher: Tensor) -> None:
        """Move the banks' entries of all processes' batches towards their embeddings."""
        index, student, teacher = gather_batch([index, student, teacher])
        # A sampler may repeat samples to fill the last batch. The first one counts on all ranks.
        first = (index.unsqueeze(0) == index.unsqueeze(1)).int().argmax(1)
        for bank, embedding in ((self.student_bank, student), (self.teacher_bank, teacher)):
            old = bank[index]
            moved = F.normalize(torch.lerp(embedding[first], old, self.momentum), dim=-1)
            # NonFiniteHook skips a step that is not finite, but cannot undo a change of the bank.
            bank[index] = torch.where(moved.isfinite().all(-1, keepdim=True), moved, old)

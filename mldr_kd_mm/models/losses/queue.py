"""Relations of a batch to a queue of the teacher's features."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mldr_kd_mm.models.losses.common import (
    check_features,
    check_widths,
    full_precision,
    gather_batch,
)
from mldr_kd_mm.registry import MODELS
from mldr_kd_mm.utils.errors import check_above_zero, check_positive


@MODELS.register_module()
class QueueLoss(nn.Module):
    r"""Match the student's similarities to recent features of the teacher with the teacher's own.

    The queue :math:`Q` holds the teacher's features of the last images, first in, first out, those
    of the current batch included. All features have unit length. With a linear projection
    :math:`P` to the teacher's width and temperature :math:`\tau` the loss, averaged over the batch,
    is

    .. math:: \mathrm{KL}\bigl(\mathrm{softmax}(f_t Q^\top / \tau) \,\|\,
        \mathrm{softmax}(P f_s Q^\top / \tau)\bigr).

    Entries that are not filled yet do not count. With several processes the queue holds the
    features of all, in the order of their ranks, so that it is the same on each. It is part of the
    checkpoint. A feature that is zero or not finite never enters it.

    Source: the first version of lightly-train's distillation, from its code (queue of 8192,
    temperature 0.07).

    Args:
        size: Number of features in the queue.
        temperature: Temperature of both distributions; above 0.
        student_width: Width D_s. None: the Distiller sets it.
        teacher_width: Width D_t. None: the Distiller sets it.

    Raises:
        ConfigError: If an argument is out of range, or a width is missing.
    """

    def __init__(
        self,
        size: int = 8192,
        temperature: float = 0.07,
        student_width: int | None = None,
        teacher_width: int | None = None,
    ) -> None:
        super().__init__()
        check_positive(size=size)
        check_above_zero(temperature=temperature)
        check_widths(student_width, teacher_width)
        self.size = size
        self.temperature = temperature
        self.project = nn.Linear(student_width, teacher_width, bias=False)
        # An entry that is zero is empty.
        self.register_buffer('queue', torch.zeros(size, teacher_width))
        self.register_buffer('position', torch.zeros((), dtype=torch.long))

    @full_precision
    def forward(self, student: Tensor, teacher: Tensor) -> Tensor:
        """Compare the features of a batch with the queue; in training, store the teacher's in it.

        Args:
            student: Features (B, D_s).
            teacher: Features (B, D_t); no gradient flows into them.

        Returns:
            A scalar.

        Raises:
            ConfigError: If the features are not vectors (B, D) of equal batch size.
        """
        check_features(student, teacher)
        teacher = F.normalize(teacher, dim=-1)
        queue = self._push(teacher)
        is_filled = queue.any(-1)
        log_p, log_q = (
            self._log_similarities(features, queue, is_filled)
            for features in (teacher, F.normalize(self.project(student), dim=-1))
        )
        return (log_p.exp() * (log_p - log_q)).sum(-1).mean()

    def _log_similarities(self, features: Tensor, queue: Tensor, is_filled: Tensor) -> Tensor:
        """Return the log-probabilities of the entries (B, Q); those of empty entries are equal."""
        similarities = features @ queue.T / self.temperature
        # Not -inf, whose differences are NaN: the exponential of this is 0, too.
        lowest = torch.finfo(similarities.dtype).min
        logs = similarities.masked_fill(~is_filled, lowest).log_softmax(-1)
        return logs.masked_fill(~is_filled, lowest)

    @torch.no_grad()
    def _push(self, features: Tensor) -> Tensor:
        """Return the queue with features added; in training with those of all ranks, and store it.

        It is a copy, as the next batch may change the queue before the backward pass of this one.
        """
        if self.training:
            (features,) = gather_batch([features])
        # NonFiniteHook skips a step that is not finite, but cannot undo a change of the queue.
        features = torch.where(features.isfinite().all(-1, keepdim=True), features, 0.0)
        count = len(features)
        newest = torch.arange(max(count - self.size, 0), count, device=features.device)
        places = (self.position + newest) % self.size
        queue = self.queue.index_copy(0, places, features[-self.size :].to(self.queue.dtype))
        if self.training:
            self.queue.copy_(queue)
            self.position.copy_((self.position + count) % self.size)
        return queue.to(features.dtype)

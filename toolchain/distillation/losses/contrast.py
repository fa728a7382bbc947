r"""CRD: the student's embedding of a sample picks the teacher's of the same sample among many others.

    L = l(s, bank_t) + l(t, bank_s)
    l(v, bank) = -mean_i [log h(v_i, bank_i) + sum_{j in K_i} log(1 - h(v_i, bank_j))]
    h(v, u) = P / (P + k / n),  P = exp(v . u / T) / Z

with n samples, k of them negatives K_i, embeddings v of length 1, Z estimated on the first batch, and banks
of every sample's embedding that follow by a moving average.
(Tian, Krishnan, Isola 2020, arXiv 1910.10699.)
Axes: B batch, N samples, K negatives, D dimensions of the embedding, P one positive and then the negatives.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from deploy.errors import ConfigError
from toolchain.distillation.losses.arithmetic import full_precision, unit
from toolchain.distillation.losses.entry import distillation_loss
from toolchain.distillation.losses.joining import Embedding
from toolchain.distillation.options import Count, Positive, Share


@distillation_loss(
    "crd",
    match="own",
    source="Tian, Krishnan, Isola 2020",
    equation="-log h(same sample) - Σ_k log(1 - h(others)), h = P / (P + k/n), P = exp(v·u / T) / Z",
    default_strength=0.8,
)
class ContrastiveRepresentation(nn.Module):
    """Noise-contrastive estimation against memory banks, which a forward pass in training mode updates.

    Negatives are drawn anew at each pass, with replacement, from torch's generator; where no more samples
    exist than are asked for, all others are taken. With ``other_classes`` those known to be of the same
    class are left out: the authors' comparisons drew negatives from other classes.

    Args:
        student_shape: [B, C, H, W], [B, N, C] or [B, C]; positions are averaged.
        teacher_shape: Likewise.
        samples: In the training part; ``index_B`` counts below it.
        negatives: Per sample.
        dimensions: Of the embeddings.
        temperature: T, of the similarities.
        momentum: Of the banks: the share of what they held.
        other_classes: Whether samples of the same class are no negatives.

    Raises:
        ConfigError: Fewer than two samples.
    """

    student_bank_ND: Tensor
    teacher_bank_ND: Tensor
    labels_N: Tensor
    student_log_z: Tensor
    teacher_log_z: Tensor

    def __init__(
        self,
        student_shape: tuple[int, ...],
        teacher_shape: tuple[int, ...],
        samples: int = 0,
        negatives: Count = 16384,
        dimensions: Count = 128,
        temperature: Positive = 0.07,
        momentum: Share = 0.5,
        other_classes: bool = True,
    ) -> None:
        super().__init__()
        if samples < 2:
            raise ConfigError(
                f"distil.losses (crd).samples: {samples} given; accepted are 2 or more, the size of the "
                "training part; use more data or another loss"
            )
        self.student = Embedding(student_shape, dimensions)
        self.teacher = Embedding(teacher_shape, dimensions)
        self._negatives = min(negatives, samples - 1)
        self._temperature, self._momentum = temperature, momentum
        self._other_classes = other_classes
        bound = math.sqrt(3 / dimensions)  # entries whose squares sum to 1 on average
        for side in ("student", "teacher"):
            bank_ND = (torch.rand(samples, dimensions) * 2 - 1) * bound
            self.register_buffer(f"{side}_bank_ND", bank_ND)
            self.register_buffer(f"{side}_log_z", torch.tensor(math.nan))
        self.register_buffer("labels_N", torch.full((samples,), -1))

    @full_precision
    def forward(
        self, student: Tensor, teacher: Tensor, index_B: Tensor, labels_B: Tensor
    ) -> Tensor:
        """The loss of a batch whose samples are ``index_B`` of the training part."""
        s_BD, t_BD = unit(self.student(student)), unit(self.teacher(teacher))
        others_BK = self._draw(index_B)
        picked_BP = torch.cat([index_B[:, None], others_BK], dim=1)
        counts_BK = torch.ones_like(others_BK, dtype=s_BD.dtype)
        if self._other_classes:
            counts_BK = (self.labels_N[others_BK] != labels_B[:, None]).to(s_BD.dtype)
        scores_BP = (s_BD @ self.teacher_bank_ND.T).gather(1, picked_BP) / self._temperature
        student_log_z = _estimated(self.student_log_z, scores_BP, len(self.labels_N))
        loss = self._contrast(scores_BP - student_log_z, counts_BK)
        scores_BP = (t_BD @ self.student_bank_ND.T).gather(1, picked_BP) / self._temperature
        teacher_log_z = _estimated(self.teacher_log_z, scores_BP, len(self.labels_N))
        loss = loss + self._contrast(scores_BP - teacher_log_z, counts_BK)
        if self.training:
            self.student_log_z, self.teacher_log_z = student_log_z, teacher_log_z
            self._remember(s_BD.detach(), t_BD.detach(), index_B, labels_B)
        return loss

    def _draw(self, index_B: Tensor) -> Tensor:
        """Samples other than each one's own."""
        others, size = len(self.labels_N) - 1, (len(index_B), self._negatives)
        if self._negatives == others:
            drawn_BK = torch.arange(others, device=index_B.device).expand(size)
        else:
            drawn_BK = torch.randint(others, size, device=index_B.device)
        return drawn_BK + (drawn_BK >= index_B[:, None])

    def _contrast(self, log_p_BP: Tensor, counts_BK: Tensor) -> Tensor:
        # log h = -softplus(log(k/n) - log P) and log(1 - h) = -softplus(log P - log(k/n)).
        k_B1 = counts_BK.sum(1, keepdim=True).clamp(min=1)
        margin_BP = log_p_BP - (k_B1.log() - math.log(len(self.labels_N)))
        same_B, others_BK = F.softplus(-margin_BP[:, 0]), F.softplus(margin_BP[:, 1:])
        return (same_B + (others_BK * counts_BK).sum(1)).mean()

    @torch.no_grad()
    def _remember(self, s_BD: Tensor, t_BD: Tensor, index_B: Tensor, labels_B: Tensor) -> None:
        # New tensors: the backward pass still needs the banks as they were.
        self.student_bank_ND = self._moved(self.student_bank_ND, s_BD, index_B)
        self.teacher_bank_ND = self._moved(self.teacher_bank_ND, t_BD, index_B)
        self.labels_N[index_B] = labels_B

    def _moved(self, bank_ND: Tensor, new_BD: Tensor, index_B: Tensor) -> Tensor:
        old_BD = bank_ND[index_B]
        return bank_ND.index_copy(
            0, index_B, unit(self._momentum * old_BD + (1 - self._momentum) * new_BD)
        )


def _estimated(log_z: Tensor, scores_BP: Tensor, samples: int) -> Tensor:
    """The normalizer's logarithm; estimated from these scores where it is not known yet."""
    scores_BP = scores_BP.detach()
    estimate = scores_BP.logsumexp((0, 1)) - math.log(scores_BP.numel()) + math.log(samples)
    return torch.where(log_z.isnan(), estimate, log_z)

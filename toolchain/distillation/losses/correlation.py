r"""CC: where a batch's samples err, seen by pairs of neighbours in the batch.

    L = mean_i sum_d D_id D_(i+1)d,  D = |e_s - e_t|, e the linear embeddings of both features

(After Peng et al. 2019, arXiv 1904.01802.) Axes: B batch, D dimensions of the embedding.
"""

from __future__ import annotations

from torch import Tensor, nn

from toolchain.distillation.losses.arithmetic import full_precision, nothing
from toolchain.distillation.losses.entry import distillation_loss
from toolchain.distillation.losses.joining import Embedding
from toolchain.distillation.options import Count


@distillation_loss(
    "cc",
    match="own",
    source="after Peng et al. 2019",
    equation="mean_i Σ_d D_id D_(i+1)d, D = |e_s - e_t| between embeddings",
    default_strength=0.02,
)
class CorrelationCongruence(nn.Module):
    """Product of neighbouring samples' errors; depends on the order of the batch.

    This is the form that published comparisons used and that the customary strength belongs to. The paper
    describes another: the squared difference of two Gram matrices under a Gaussian kernel. One sample has
    no neighbour, and the loss is 0. Both embeddings are learned with the student.

    Args:
        student_shape: [B, C, H, W], [B, N, C] or [B, C]; positions are averaged.
        teacher_shape: Likewise.
        dimensions: Of the embeddings.
    """

    def __init__(
        self,
        student_shape: tuple[int, ...],
        teacher_shape: tuple[int, ...],
        dimensions: Count = 128,
    ) -> None:
        super().__init__()
        self.student = Embedding(student_shape, dimensions)
        self.teacher = Embedding(teacher_shape, dimensions)

    @full_precision
    def forward(self, student: Tensor, teacher: Tensor) -> Tensor:
        """The loss of a batch."""
        if len(student) < 2:
            return nothing(student)
        error_BD = (self.student(student) - self.teacher(teacher)).abs()
        return (error_BD[:-1] * error_BD[1:]).sum(1).mean()

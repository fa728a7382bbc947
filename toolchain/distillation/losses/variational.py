r"""VID: how much the student's feature tells about the teacher's, as a bound on mutual information.

    L = mean 1/2 [(mu(f_s) - f_t)^2 / v_c + log v_c],  v_c = softplus(rho_c) + 1e-5

with mu three 1x1 convolutions and one variance v_c per channel of the teacher, both learned.
(Ahn, Hu, Damianou, Lawrence, Dai 2019, arXiv 1904.05835.)
Axes: B batch, C channels, H height, W width.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from toolchain.distillation.losses.arithmetic import full_precision
from toolchain.distillation.losses.entry import distillation_loss
from toolchain.distillation.losses.joining import as_map, channels, require_maps, same_resolution
from toolchain.distillation.options import Positive

_LEAST = 1e-5


@distillation_loss(
    "vid",
    match="own",
    source="Ahn, Hu, Damianou, Lawrence, Dai 2019",
    equation="mean of ½ [(μ(f_s) - f_t)² / σ_c² + log σ_c²], μ and σ learned",
    default_strength=1.0,
)
class VariationalInformation(nn.Module):
    """Negative log-likelihood of the teacher's feature under a Gaussian around a regression; may be negative.

    Features of two resolutions are averaged to the smaller one.

    Args:
        student_shape: [B, C, H, W], tokens [B, N, C] of a square grid, or [B, C].
        teacher_shape: Likewise.
        variance: At the start, of every channel.

    Raises:
        ConfigError: Tokens that form no square grid.
    """

    def __init__(
        self,
        student_shape: tuple[int, ...],
        teacher_shape: tuple[int, ...],
        variance: Positive = 5.0,
    ) -> None:
        super().__init__()
        require_maps("vid", student_shape, teacher_shape)
        s, t = channels(student_shape), channels(teacher_shape)
        self.mean = nn.Sequential(
            nn.Conv2d(s, t, 1, bias=False),
            nn.ReLU(),
            nn.Conv2d(t, t, 1, bias=False),
            nn.ReLU(),
            nn.Conv2d(t, t, 1, bias=False),
        )
        above = max(variance - _LEAST, _LEAST)
        self.rho_C = nn.Parameter(torch.full((t,), above + math.log(-math.expm1(-above))))

    @full_precision
    def forward(self, student: Tensor, teacher: Tensor) -> Tensor:
        """The loss of a batch."""
        student_BCHW, teacher_BCHW = same_resolution(as_map(student), as_map(teacher))
        variance_C11 = F.softplus(self.rho_C)[:, None, None] + _LEAST
        error_BCHW = (self.mean(student_BCHW) - teacher_BCHW).square()
        return (error_BCHW / variance_C11 + variance_C11.log()).mean() / 2

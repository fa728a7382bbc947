r"""SAKD's policy: for every sample and spot, the teacher's way or the student's.

    v = W [sg g(f_t), sg g(f_s)] + b,  [S, 2] for a sample     g: mean over all positions
    y = softmax((v + G) / tau),  G ~ Gumbel(0, 1)
    w = one_hot(argmax y) forward, and y's gradient backward    (straight-through)
    tau(p) = tau_start^(1 - p) tau_end^p                        p: share of the run that is done

Song, Chen, Ye, Song 2022, "Spot-adaptive Knowledge Distillation", IEEE TIP 31, arXiv 2205.02399; the
straight-through estimate is that of Jang, Gu, Poole 2017, arXiv 1611.01144. The paper lets tau fall from 5
and the released code keeps 5; the shape of the fall is not published: ours is a **reconstruction**. Axes:
B batch, S spots, C channels, X positions; of the two ways, 0 is the teacher's.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

TEACHER = 0
# Added to the teacher's logit where both networks are of one family, as in the released code: training
# then starts with every sample distilled at every spot.
HEAD_START = 10.0


class Policy(nn.Module):
    """One linear layer over what both networks see in a sample.

    Args:
        teacher: Channels of the teacher's features.
        student: Channels of the student's.
        spots: Number of decisions, the logits' included.
        head_start: Whether the teacher's way is all but certain at first.
    """

    def __init__(self, teacher: int, student: int, spots: int, *, head_start: bool = False) -> None:
        super().__init__()
        self.linear = nn.Linear(teacher + student, 2 * spots)
        if head_start:
            with torch.no_grad():
                self.linear.bias.view(spots, 2)[:, TEACHER] += HEAD_START

    def forward(self, teacher: Tensor, student: Tensor) -> Tensor:
        """Logits [B, S, 2] of the two ways, from features [B, C] or [B, C, X...] of each network."""
        seen_BC = torch.cat([pooled(teacher), pooled(student)], dim=1)
        with torch.autocast(seen_BC.device.type, enabled=False):
            return self.linear(seen_BC).unflatten(1, (-1, 2))


def pooled(features_BCX: Tensor) -> Tensor:
    """Mean over positions in float32, [B, C], without a graph; tokens are [B, X, C] and have three axes."""
    features_BCX = features_BCX.detach().float()
    if features_BCX.dim() == 3:
        return features_BCX.mean(1)
    return features_BCX.flatten(2).mean(2) if features_BCX.dim() > 2 else features_BCX


def channels(shape: torch.Size) -> int:
    """Number of channels of features [B, C, X...], or of tokens [B, X, C]."""
    return shape[2] if len(shape) == 3 else shape[1]


def gumbel(shape: tuple[int, ...], generator: torch.Generator) -> Tensor:
    """Standard Gumbel noise, on the CPU: the same on every device, and its generator's state travels."""
    return -torch.empty(shape).exponential_(generator=generator).log()


def straight_through(v_BS2: Tensor, noise_BS2: Tensor, tau: float) -> Tensor:
    """One-hot choices [B, S, 2] whose gradient is that of the softened ones.

    >>> straight_through(torch.tensor([[[2.0, 1.0]]]), torch.zeros(1, 1, 2), 5.0)
    tensor([[[1., 0.]]])
    """
    y_BS2 = torch.softmax((v_BS2 + noise_BS2) / tau, dim=-1)
    chosen_BS2 = F.one_hot(y_BS2.argmax(-1), 2).to(y_BS2.dtype)
    return chosen_BS2 + (y_BS2 - y_BS2.detach())  # the bracket is exactly zero


def annealed(start: float, end: float, share: float) -> float:
    """Tau when this share of the run, in [0, 1], is done.

    >>> annealed(5.0, 5.0, 0.3), annealed(4.0, 1.0, 0.5), annealed(4.0, 1.0, 1.0)
    (5.0, 2.0, 1.0)
    """
    return start if start == end else start ** (1 - share) * end**share

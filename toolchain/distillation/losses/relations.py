r"""Losses between the samples of a batch: how they lie to one another, not where; any two shapes agree.

    sp   |u(S S^T) - u(T T^T)|_F^2 / B^2, S and T the features as rows, u scales each row to length 1
         (Tung, Mori 2019, arXiv 1907.09682)
    rkd  distance mean_ij h(d_ij / mean d) + angle mean_ijk h(cos of the angle at i between j and k), h
         Huber's loss of the difference to the teacher's
         (Park, Kim, Lu, Cho 2019, arXiv 1904.05068, sec. 3.2)
    pkt  mean_ij p_ij log(p_ij / q_ij); p and q are (cos + 1) / 2 of two samples, each row scaled to sum 1
         (Passalis, Tefas 2018, arXiv 1803.10837)

All need two samples: one has no relation, and the loss is 0. On a part of a batch they mean something else
than on the whole, because they see fewer relations. Features of any shape [B, ...] count as one vector per
sample. Axes: B, I, J, K batch, D features of a sample, E features of a sample of the other network.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

from toolchain.distillation.losses.arithmetic import full_precision, nothing, root, rows, unit
from toolchain.distillation.losses.entry import distillation_loss
from toolchain.distillation.options import Weight

# Keeps the logarithm of a similarity finite where two samples point in opposite directions.
_OPPOSITE = 1e-7


@distillation_loss(
    "sp",
    match="batch",
    source="Tung, Mori 2019",
    equation="|u(S Sᵀ) - u(T Tᵀ)|² / B², u scales rows to length 1",
    default_strength=3000.0,
)
@full_precision
def sp(student_BD: Tensor, teacher_BE: Tensor) -> Tensor:
    """Similarity-preserving: which samples excite the network alike."""
    if len(student_BD) < 2:
        return nothing(student_BD)
    return F.mse_loss(_similarities(student_BD), _similarities(teacher_BE))


@distillation_loss(
    "rkd",
    match="batch",
    source="Park, Kim, Lu, Cho 2019",
    equation="distance · Huber(d_ij / mean d) + angle · Huber(cosine at i of j and k)",
    default_strength=1.0,
)
@full_precision
def rkd(
    student_BD: Tensor, teacher_BE: Tensor, distance: Weight = 25.0, angle: Weight = 50.0
) -> Tensor:
    """Relational: distances of all pairs, relative to their mean, and angles of all triplets.

    Means run over all B^2 pairs and B^3 triplets, those of a sample with itself included (they are 0), the
    mean distance over pairs of two samples. Memory grows with B^3 and B^2 D: 64 MB for 256 samples' angles.
    """
    if len(student_BD) < 2:
        return nothing(student_BD)
    loss = student_BD.new_zeros(())
    if distance:
        loss = loss + distance * F.smooth_l1_loss(_distances(student_BD), _distances(teacher_BE))
    if angle:
        loss = loss + angle * F.smooth_l1_loss(_angles(student_BD), _angles(teacher_BE))
    return loss if distance or angle else nothing(student_BD)


@distillation_loss(
    "pkt",
    match="batch",
    source="Passalis, Tefas 2018",
    equation="mean of p_ij log(p_ij / q_ij), rows of (cos + 1) / 2 scaled to sum 1",
    default_strength=30000.0,
)
@full_precision
def pkt(student_BD: Tensor, teacher_BE: Tensor) -> Tensor:
    """Probabilistic: each sample's chances to pick each other as its neighbour.

    The mean runs over all B^2 pairs, a sample with itself included, as in the authors' own computation, to
    which the customary strength belongs; the paper sums over pairs of two samples.
    """
    if len(student_BD) < 2:
        return nothing(student_BD)
    q_BB, p_BB = _chances(student_BD), _chances(teacher_BE)
    return (p_BB * torch.log((p_BB + _OPPOSITE) / (q_BB + _OPPOSITE))).mean()


def _similarities(features: Tensor) -> Tensor:
    x_BD = rows(features)
    return unit(x_BD @ x_BD.T)


def _distances(features: Tensor) -> Tensor:
    """Of all pairs [I, J], in units of their mean; zero where all samples are the same."""
    x_BD = rows(features)
    # Around the mean: the products below then lose no digits to an offset that all samples share.
    x_BD = x_BD - x_BD.mean(0)
    gram_IJ = x_BD @ x_BD.T
    square_I = gram_IJ.diagonal()
    far_IJ = root(square_I[:, None] + square_I - 2 * gram_IJ)
    mean = far_IJ.sum() / (far_IJ.numel() - len(far_IJ))
    return far_IJ / torch.where(mean > 0, mean, torch.ones_like(mean))


def _angles(features: Tensor) -> Tensor:
    """Cosines at sample i between the directions to j and to k: [I, J, K]."""
    x_BD = rows(features)
    towards_IJD = unit(x_BD[None] - x_BD[:, None])
    return towards_IJD @ towards_IJD.transpose(1, 2)


def _chances(features: Tensor) -> Tensor:
    x_BD = unit(rows(features))
    near_BB = (x_BD @ x_BD.T + 1) / 2
    return near_BB / near_BB.sum(1, keepdim=True)

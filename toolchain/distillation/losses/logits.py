r"""Losses between the logits of two classifiers, z_s and z_t; q = softmax(z_s / T), p = softmax(z_t / T).

    kl         T^2 sum_c p_c log(p_c / q_c), mean over B
               (Hinton, Vinyals, Dean 2015, arXiv 1503.02531)
    dkd        T^2 (alpha KL(b_t || b_s) + beta KL(p^ || q^)), mean over B; b = (p_y, 1 - p_y) for the label
               y, p^ and q^ the softmax over the other classes
               (Zhao, Cui, Song, Qiu, Liang 2022, arXiv 2203.08679)
    dist       T^2 (inter (1 - mean_B r(q_b, p_b)) + intra (1 - mean_C r(q_c, p_c))), r Pearson's correlation
               of a sample's classes and of a class's samples
               (Huang, You, Wang, Qian, Xu 2022, arXiv 2205.10536)
    logit_mse  mean over B and C of (z_s - z_t)^2
               (Ba, Caruana 2014, arXiv 1312.6184)

Axes: B batch, C classes, O classes other than the label's.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

from deploy.errors import ConfigError
from toolchain.distillation.losses.arithmetic import full_precision, unit
from toolchain.distillation.losses.entry import Temperature, distillation_loss
from toolchain.distillation.options import Weight


@distillation_loss(
    "kl",
    match="classes",
    source="Hinton, Vinyals, Dean 2015",
    equation="T² Σ_c p_c log(p_c / q_c), mean over samples",
)
@full_precision
def kl(student_BC: Tensor, teacher_BC: Tensor, temperature: Temperature = 4.0) -> Tensor:
    """Divergence of softened classes; T^2 keeps the gradient's scale independent of T.

    A learned temperature is a scalar tensor, or one value per sample [B].
    """
    t_B1 = per_sample(temperature, student_BC)
    divergence_B = _divergence(
        F.log_softmax(student_BC / t_B1, dim=1), F.log_softmax(teacher_BC / t_B1, dim=1)
    )
    return (t_B1.squeeze(1).square() * divergence_B).mean()


@distillation_loss(
    "dkd",
    match="classes",
    source="Zhao, Cui, Song, Qiu, Liang 2022",
    equation="T² (α KL(p_y, 1 - p_y) + β KL(the other classes among themselves)), mean over samples",
    default_strength=1.0,
)
@full_precision
def dkd(
    student_BC: Tensor,
    teacher_BC: Tensor,
    labels_B: Tensor,
    alpha: Weight = 1.0,
    beta: Weight = 2.0,
    temperature: Temperature = 4.0,
) -> Tensor:
    """Divergence split into the label's class against the rest, and the rest among itself.

    KL is the same sum with alpha = 1 and beta = 1 - p_y: it stops teaching about the other classes where
    the teacher is sure. The paper takes alpha = 1 and beta between 1 and 8, after the teacher's confidence,
    and raises the loss over the first 20 epochs, which the controller ``ramp`` does.

    Raises:
        ConfigError: There is one class only.
    """
    if student_BC.shape[1] < 2:
        raise ConfigError(
            "distil.losses (dkd): 1 class given; accepted are 2 or more; use logit_mse"
        )
    t_B1 = per_sample(temperature, student_BC)
    target_s_B2, other_s_BO = _decoupled(student_BC / t_B1, labels_B)
    target_t_B2, other_t_BO = _decoupled(teacher_BC / t_B1, labels_B)
    target_B = _divergence(target_s_B2, target_t_B2)
    other_B = _divergence(other_s_BO, other_t_BO)
    return (t_B1.squeeze(1).square() * (alpha * target_B + beta * other_B)).mean()


@distillation_loss(
    "dist",
    match="classes",
    source="Huang, You, Wang, Qian, Xu 2022",
    equation="T² (inter (1 - correlation of a sample's classes) + intra (1 - of a class's samples))",
    default_strength=2.0,
)
@full_precision
def dist(
    student_BC: Tensor,
    teacher_BC: Tensor,
    inter: Weight = 1.0,
    intra: Weight = 1.0,
    temperature: Temperature = 1.0,
) -> Tensor:
    """Correlations instead of equality: what a smaller student can follow of a much stronger teacher.

    One sample has no relation between samples: its ``intra`` part is 0. Two classes correlate at 1 or -1
    whatever they are: there ``intra`` alone teaches. T is 1 on ImageNet and 4 on CIFAR-100 in the paper; a
    temperature per sample [B] multiplies ``intra`` by the mean of its squares.
    """
    t_B1 = per_sample(temperature, student_BC)
    q_BC, p_BC = F.softmax(student_BC / t_B1, dim=1), F.softmax(teacher_BC / t_B1, dim=1)
    squared_B = t_B1.squeeze(1).square()
    loss = inter * (squared_B * (1 - _correlation(q_BC, p_BC, dim=1))).mean()
    if len(student_BC) > 1:
        loss = loss + intra * squared_B.mean() * (1 - _correlation(q_BC, p_BC, dim=0).mean())
    return loss


@distillation_loss(
    "logit_mse",
    match="classes",
    source="Ba, Caruana 2014",
    equation="mean of (z_s - z_t)²",
)
@full_precision
def logit_mse(student_BC: Tensor, teacher_BC: Tensor) -> Tensor:
    """Mean squared difference of logits."""
    return F.mse_loss(student_BC, teacher_BC)


def per_sample(temperature: float | Tensor, like_BC: Tensor) -> Tensor:
    """A temperature as [B, 1] or, where it is one for all, [1, 1], in the logits' number format."""
    if isinstance(temperature, Tensor):
        return temperature.to(like_BC).reshape(-1, 1)
    return like_BC.new_full((1, 1), temperature)


def _divergence(log_q_BC: Tensor, log_p_BC: Tensor) -> Tensor:
    """KL(p || q) of each sample [B]."""
    return F.kl_div(log_q_BC, log_p_BC, reduction="none", log_target=True).sum(1)


def _decoupled(z_BC: Tensor, labels_B: Tensor) -> tuple[Tensor, Tensor]:
    """Logarithms of (p_y, 1 - p_y) [B, 2], and of the other classes among themselves [B, O]."""
    others_O = torch.arange(z_BC.shape[1] - 1, device=z_BC.device)
    others_BO = others_O + (others_O >= labels_B[:, None])
    z_BO = z_BC.gather(1, others_BO)
    pair_B2 = torch.stack([z_BC.gather(1, labels_B[:, None]).squeeze(1), z_BO.logsumexp(1)], dim=1)
    return F.log_softmax(pair_B2, dim=1), F.log_softmax(z_BO, dim=1)


def _correlation(x_BC: Tensor, y_BC: Tensor, dim: int) -> Tensor:
    """Pearson's; 0 where either side does not vary, beyond what rounding leaves of equal numbers."""
    return (_standardized(x_BC, dim) * _standardized(y_BC, dim)).sum(dim)


def _standardized(x_BC: Tensor, dim: int) -> Tensor:
    """Without its mean along ``dim``, at length 1; zeros where nothing but rounding is left."""
    centred_BC = x_BC - x_BC.mean(dim, keepdim=True)
    rounding = 8 * torch.finfo(x_BC.dtype).eps * x_BC.detach().abs().amax(dim, keepdim=True)
    varies = centred_BC.detach().abs().amax(dim, keepdim=True) > rounding
    return unit(torch.where(varies, centred_BC, torch.zeros_like(centred_BC)), dim)

r"""OFA-KD: a feature's exit branch against the teacher's logits, with more weight on the label's class.

    code   L = -sum_c [(p_c + m_c)^gamma - m_c] log q_c, mean over B
    paper  L = -[(1 + p_y)^gamma - 1] log q_y - sum_{c != y} p_c log q_c, mean over B

    q = softmax(z_s / T), p = softmax(z_t / T), m the one-hot vector of the label y

(Hao, Guo, Han, Tang, Hu, Wang, Xu 2023, arXiv 2310.19444; `code` is what the authors' program computes.)
Axes: B batch, C classes.
"""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor
from torch.nn import functional as F

from toolchain.distillation.losses.arithmetic import full_precision
from toolchain.distillation.losses.entry import Temperature, distillation_loss
from toolchain.distillation.losses.logits import per_sample
from toolchain.distillation.options import Positive


@distillation_loss(
    "ofa",
    match="exit",
    source="Hao, Guo, Han, Tang, Hu, Wang, Xu 2023",
    equation="-Σ_c [(p_c + m_c)^γ - m_c] log q_c, m one-hot at the label",
    default_strength=1.0,
    version=2,
)
@full_precision
def ofa(
    student_BC: Tensor,
    teacher_BC: Tensor,
    labels_B: Tensor,
    gamma: Positive = 1.0,
    form: Literal["code", "paper"] = "code",
    temperature: Temperature = 1.0,
) -> Tensor:
    """Soft labels whose target is strengthened by ``gamma``; at 1 both forms are soft-label cross-entropy.

    The paper raises only the target's probability to gamma, the authors' program every class's, which
    weakens the others where gamma exceeds 1. The cross-entropy with the label, which the paper's equation
    contains, is the term ``task`` here; so 1 is taken off the target's weight. Nothing is multiplied by T^2.
    """
    t_B1 = per_sample(temperature, student_BC)
    log_q_BC, p_BC = F.log_softmax(student_BC / t_B1, dim=1), F.softmax(teacher_BC / t_B1, dim=1)
    label_BC = F.one_hot(labels_B, student_BC.shape[1]).to(p_BC.dtype)
    # Below gamma = 1 the power has no derivative at 0, which a learned temperature would ask for.
    raised_BC = (p_BC.clamp_min(torch.finfo(p_BC.dtype).tiny) + label_BC) ** gamma - label_BC
    if form == "paper":
        raised_BC = raised_BC * label_BC + p_BC * (1 - label_BC)
    return -(raised_BC * log_q_BC).sum(1).mean()

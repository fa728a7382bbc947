"""What a strength does to the loss on samples that were held out, one step ahead.

For one plain step of gradient descent  W' = W - eta (s_task g_task + sum_l alpha_l g_l):

    dL_V / dalpha_l = -eta <grad_W L_V(W'), g_l>,             g_l = grad_W L_kd^l(W)

and for one soft-threshold step  Z_g = max(0, 1 - p beta_l sqrt|g| / |V_g|) V_g  with the price p (1 / rho in
the paper's terms, see ``admm``):

    dL_V / dbeta_l = -p sum_{g active} sqrt|g| <grad_{Z_g} L_V, V_g / |V_g|>
    dS / dbeta_l   = -p sum_{g active} m_g sqrt|g| / |V_g|    for the size S = sum_g m_g |Z_g| / |V_g|

The controls are scalars, so no second derivative is needed: dL_V / dalpha is exact for plain gradient
descent, and dL_V / dbeta where the Z-step is the soft threshold (``budget: multiplier``).

Under ``budget: projection`` dL_V / dbeta is a **surrogate**: the Z-step is hard there, Z_g = V_g or 0, so
that the true derivative by beta is zero almost everywhere and says nothing. The soft threshold's formula is
applied to all channels that stay, at the price that the projection found, with grad_{Z_g} L_V taken at the
hard Z, which is the network that is left. That is the derivative of no objective: no soft-thresholded
network is ever looked at. What it asks is which layer's channels the loss would miss least if they shrank.

**Reconstruction**, the surrogate too, of Liu et al. 2022 (IEEE TPAMI 45(3), doc. 9804342), who train the
dean by meta-learning; the identities are ours to derive. Axes: T terms, P all trained numbers of the
student, C channels.
"""

from __future__ import annotations

import torch
from torch import Tensor


def strength_hypergradients(
    held_out_P: Tensor, terms_TP: Tensor, learning_rate: float | Tensor
) -> Tensor:
    """Derivative [T] of the held-out loss by each term's strength.

    Args:
        held_out_P: Gradient of the held-out loss after the step, at W'.
        terms_TP: Gradient of each term before the step, at W.
        learning_rate: eta, one for all or one [P] for each number.
    """
    return -(terms_TP * (learning_rate * held_out_P)).sum(-1)


def sparsity_hypergradient(
    dots_C: Tensor, norms_C: Tensor, active_C: Tensor, size: int, price: float
) -> Tensor:
    """Derivative of the held-out loss by a group's sparsity strength, a scalar.

    Args:
        dots_C: <grad_{Z_g} L_V, V_g> of each channel.
        norms_C: |V_g|.
        active_C: Which channels have Z_g != 0.
        size: |g|, how many numbers a channel has.
        price: p.
    """
    return -price * size**0.5 * _over(dots_C, norms_C)[active_C].sum()


def size_hypergradient(
    cost_C: Tensor, norms_C: Tensor, active_C: Tensor, size: int, price: float
) -> Tensor:
    """Derivative of the relaxed size by a group's sparsity strength, a scalar; never above zero.

    Args:
        cost_C: m_g, what each channel costs, e.g. its share of the network's MACs.
        norms_C: |V_g|.
        active_C: Which channels have Z_g != 0.
        size: |g|.
        price: p.
    """
    return -price * size**0.5 * _over(cost_C, norms_C)[active_C].sum()


def keeping_size(loss_L: Tensor, size_L: Tensor) -> Tensor:
    """The loss's derivatives [L] without the part that only makes the network larger or smaller.

    With a budget that is met anyway, what counts is where sparsity goes: the multiplier mu of
    L_V + mu S is the one that leaves no pull along dS, mu = -<dL, dS> / <dS, dS>.
    """
    square = (size_L * size_L).sum()
    if square == 0:
        return loss_L
    return loss_L - (loss_L * size_L).sum() / square * size_L


def _over(values_C: Tensor, norms_C: Tensor) -> Tensor:
    return torch.where(norms_C > 0, values_C / norms_C.clamp_min(1e-30), torch.zeros_like(values_C))

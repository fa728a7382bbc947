"""One step ahead: what the strengths of now do to samples that the student is never fitted on.

    W' = W - eta (s_task g_task + sum_l alpha_l g_l + pull of ADMM)
    h  = derivatives of L_V(W') by every alpha, and of L_V(Z'(W')) by every beta (see ``hypergradients``)

The latter are exact for a soft Z-step (``budget: multiplier``); for ``projection``, whose own derivatives are
zero, they are the soft step's formula with the gradient at the hard Z: a surrogate, and a reconstruction.
eta is the same for every weight, a tenth of it for quantizer steps, as in training; it is lowered where
the step would be longer than 5% of the weights: the loss is to be looked at nearby. There only the step's
direction depends on the strengths, so that the part of the held-out gradient along the step counts for none:

    W' = W - c d / |d|,    h_l = -c / |d| <grad_V - (<grad_V, d> / |d|^2) d, r g_l>,    d = r (s g + ...)

with r the factors on eta. Weights, buffers and
random numbers are put back to the bit. **Reconstruction** of Liu et al. 2022 (IEEE TPAMI 45(3)).
Axes: P all trained numbers of the student.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from toolchain.dean.gradients import (
    TermGradients,
    by_parameter,
    flat,
    moved,
    task_gradient,
    trained,
)
from toolchain.dean.hypergradients import strength_hypergradients
from toolchain.distillation.lessons import School
from toolchain.training.objective import Batch
from toolchain.training.optimizers import quantizer_scales

LONGEST_STEP = 0.05
SCALES_FACTOR = 0.1


@dataclass(frozen=True)
class Ahead:
    """What lies one step ahead.

    Attributes:
        derivatives: Of the held-out loss by each term's strength, then by each layer's sparsity strength.
        loss: Held-out loss after the step.
        learning_rate: eta, as it was used.
    """

    derivatives: tuple[float, ...]
    loss: float
    learning_rate: float


def look_ahead(
    school: School,
    gradients: TermGradients,
    task: float,
    strengths: Sequence[float],
    held_out: Batch,
    learning_rate: float,
) -> Ahead:
    """Take the step, look at the held-out batch, and go back.

    Args:
        school: The student, its sparsifier if any.
        gradients: At W, of a batch of the training part.
        task: Strength of the task.
        strengths: Of each term.
        held_out: Samples that ``gradients`` have not seen.
        learning_rate: eta, if the step is not longer than allowed.
    """
    parameters = trained(school)
    sparsifier = school.sparsifier if school.sparsifier and school.sparsifier.layers else None
    weights_T = gradients.terms_TP.new_tensor(strengths)
    down_P = task * gradients.task_P + (weights_T[:, None] * gradients.terms_TP).sum(0)
    if sparsifier is not None:
        pull = sparsifier.pull()
        down_P = down_P + flat([pull.get(p) for p in parameters], parameters)
    w_P = flat([p.detach() for p in parameters], parameters)
    rate_P = _rates(school.network, parameters, down_P)
    # Computed with tensors: nothing waits for the device here.
    step_P = rate_P * down_P
    length = (step_P.norm() * learning_rate).clamp_min(1e-30)
    shortened = (LONGEST_STEP * w_P.norm() / length).clamp(max=1)
    rate = learning_rate * shortened
    ahead = by_parameter(w_P - rate * step_P, parameters)
    # Along the step there is nothing to gain where it is shortened anyway.
    along_P = step_P / step_P.norm().clamp_min(1e-30) * (shortened < 1)
    by_beta: list[float] = []
    with moved(parameters, ahead):
        loss, gradient_P = task_gradient(school, held_out, parameters)
        gradient_P = gradient_P - (gradient_P @ along_P) * along_P
        by_alpha = strength_hypergradients(gradient_P, gradients.terms_TP, rate * rate_P)
        if sparsifier is not None:
            with sparsifier.sparse():
                _, at_z_P = task_gradient(school, held_out, parameters)
            pieces = by_parameter(at_z_P, parameters)
            known = sparsifier.hypergradients(dict(zip(parameters, pieces, strict=True)))
            by_beta = [known[name] for name in sparsifier.layers]
    return Ahead(
        derivatives=(*by_alpha.double().tolist(), *by_beta),
        loss=float(loss),
        learning_rate=float(rate),
    )


def _rates(network: nn.Module, parameters: Sequence[nn.Parameter], like_P: Tensor) -> Tensor:
    """Each number's learning rate as a factor of eta [P]; a plain 1 where all are the same."""
    scales = {id(p) for p in quantizer_scales(network)}
    if not scales:
        return like_P.new_ones(1)
    return flat(
        [torch.full_like(p, SCALES_FACTOR if id(p) in scales else 1.0) for p in parameters],
        parameters,
    )

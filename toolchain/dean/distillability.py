"""Distillability: how far what a teacher says agrees with what the labels say.

    c_l = <grad L_kd^l, grad L_ce> / (|grad L_kd^l| |grad L_ce|)

Liu, Cao, Li, Hu, Maybank 2022, "Learning to Explore Distillability and Sparsability", IEEE TPAMI 45(3),
https://ieeexplore.ieee.org/abstract/document/9804342: measured per layer by the cosine of the two
gradients. **Reconstruction**: which weights a layer has. Here a term's own layer are the parameters that
lie between the spot before it and its own: those that its loss depends on, without those that the loss
of any earlier spot depends on. The cosine over all parameters is given too. A cosine with a gradient of
zero is zero. Axes: N parameter tensors.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from toolchain.dean.gradients import TermGradients, products, term_gradients, trained
from toolchain.distillation.lessons import School
from toolchain.training.objective import Batch


@dataclass(frozen=True)
class Distillability:
    """Of one term.

    Attributes:
        own: Cosine over the weights of the term's own layer, in [-1, 1].
        all: Cosine over all weights of the student, in [-1, 1].
    """

    own: float
    all: float


def own_layers(reached: Sequence[Sequence[bool]]) -> tuple[tuple[int, ...], ...]:
    """For each term the parameter tensors between the spot before it and its own, ascending.

    >>> own_layers([[True, False, False], [True, True, True], [True, True, False]])
    ((0,), (2,), (1,))
    """
    sets = [frozenset(n for n, hit in enumerate(row) if hit) for row in reached]
    return tuple(
        tuple(sorted(mine.difference(*(other for other in sets if other < mine)))) for mine in sets
    )


def cosine(product: float, left_squared: float, right_squared: float) -> float:
    """<a, b> / (|a| |b|), or 0 where one of them is zero."""
    scale = (left_squared * right_squared) ** 0.5
    return max(-1.0, min(1.0, product / scale)) if scale > 0 else 0.0


def distillability(
    gradients: TermGradients, parameters: Sequence[torch.nn.Parameter]
) -> dict[str, Distillability]:
    """The cosines of each term, from the gradients on one batch; noisy, so to be averaged."""
    terms_TP, task_P = gradients.terms_TP, gradients.task_P
    both_TN = products(terms_TP, task_P[None], parameters)
    kd_TN = products(terms_TP, terms_TP, parameters)
    task_N = products(task_P[None], task_P[None], parameters)[0]
    found = {}
    for row, own in enumerate(own_layers(gradients.reached)):
        sums = [_sum(values_N, own) for values_N in (both_TN[row], kd_TN[row], task_N)]
        whole = [float(values_N.sum()) for values_N in (both_TN[row], kd_TN[row], task_N)]
        found[gradients.names[row]] = Distillability(cosine(*sums), cosine(*whole))
    return found


def measure_distillability(school: School, batches: Iterable[Batch]) -> dict[str, Distillability]:
    """The mean of each term's cosines over these batches; the student is left as it was.

    Raises:
        ValueError: There is no batch.
    """
    parameters = trained(school)
    seen: list[Mapping[str, Distillability]] = [
        distillability(term_gradients(school, batch, parameters), parameters) for batch in batches
    ]
    if not seen:
        raise ValueError("distillability is asked for without a batch")
    return {
        name: Distillability(
            sum(one[name].own for one in seen) / len(seen),
            sum(one[name].all for one in seen) / len(seen),
        )
        for name in seen[0]
    }


def _sum(values_N: Tensor, tensors: Sequence[int]) -> float:
    return float(values_N[list(tensors)].sum())

"""Distillability: how far what a teacher says agrees with what the labels say.

    c_l = <grad L_kd^l, grad L_ce> / (|grad L_kd^l| |grad L_ce|)

Liu, Cao, Li, Hu, Maybank 2022, "Learning to Explore Distillability and Sparsability", IEEE TPAMI 45(3),
https://ieeexplore.ieee.org/abstract/document/9804342: measured per layer by the cosine of the two
gradients. **Reconstruction**: which weights a layer has. Here a term's own layer are the parameters that
lie between the spot before it and its own: those that its loss depends on, without those that the loss
of any earlier spot depends on. A cosine with a gradient of zero is zero. Axes: N parameter tensors.
"""

from __future__ import annotations

from collections.abc import Sequence


def own_layers(reached: Sequence[Sequence[bool]]) -> tuple[tuple[int, ...], ...]:
    """For each term the parameter tensors between the spot before it and its own, ascending.

    Args:
        reached: For each term, whether its loss depends on each of the N tensors.

    >>> own_layers([[True, False, False], [True, True, True], [True, True, False]])
    ((0,), (2,), (1,))
    """
    sets = [frozenset(n for n, hit in enumerate(row) if hit) for row in reached]
    return tuple(
        tuple(sorted(mine.difference(*(other for other in sets if other < mine)))) for mine in sets
    )


def cosine(product: float, left_squared: float, right_squared: float) -> float:
    """<a, b> / (|a| |b|) from <a, b>, |a|^2 and |b|^2; 0 where one of them is zero."""
    scale = (left_squared * right_squared) ** 0.5
    return max(-1.0, min(1.0, product / scale)) if scale > 0 else 0.0

"""How losses compute: in float32 at least, nothing to the teacher, finite where a norm is zero.

Axes: B batch, C channels, H height, W width, N tokens, X positions (H·W or N).
"""

from __future__ import annotations

import inspect
from collections.abc import Callable
from functools import wraps
from typing import Any, TypeVar, cast

import torch
from torch import Tensor

Function = TypeVar("Function", bound=Callable[..., Tensor])
Features = TypeVar("Features", Tensor, tuple[Tensor, ...])

# A row shorter than this has no direction.
_ZERO = 1e-12


def full_precision(loss: Function) -> Function:
    """A loss whose features come in float32, or in float64 where either has it, without autocast.

    The features, tensors or tuples of tensors, are the parameters ``student...`` and ``teacher...``,
    passed by position; the teacher's are detached.
    """
    names = list(inspect.signature(loss).parameters)
    first = next(i for i, name in enumerate(names) if name.startswith("student"))

    @wraps(loss)
    def compute(*given: Any, **options: Any) -> Tensor:
        before, (student, teacher), after = (
            given[:first],
            given[first : first + 2],
            given[first + 2 :],
        )
        tensors = [x for side in (student, teacher) for x in (side if _several(side) else (side,))]
        dtype = torch.float32
        for x in tensors:
            dtype = torch.promote_types(dtype, x.dtype)
        with torch.autocast(tensors[0].device.type, enabled=False):
            return loss(
                *before,
                _each(student, lambda x: x.to(dtype)),
                _each(teacher, lambda x: x.detach().to(dtype)),
                *after,
                **options,
            )

    return cast(Function, compute)


def _several(features: Tensor | tuple[Tensor, ...]) -> bool:
    return not isinstance(features, Tensor)


def _each(features: Any, change: Callable[[Tensor], Tensor]) -> Any:
    return tuple(map(change, features)) if _several(features) else change(features)


def unit(x: Tensor, dim: int = -1) -> Tensor:
    """``x`` at length 1 along ``dim``; a zero row stays zero, and its gradient finite.

    >>> unit(torch.tensor([[3.0, 4.0], [0.0, 0.0]]))
    tensor([[0.6000, 0.8000],
            [0.0000, 0.0000]])
    """
    square = x.square().sum(dim, keepdim=True)
    # Not vector_norm: its second derivative is not a number where a row is zero.
    return x / torch.where(square > _ZERO**2, square, torch.ones_like(square)).sqrt()


def root(x: Tensor) -> Tensor:
    """Square root with gradient 0 where ``x`` is 0 (or below it, by rounding)."""
    positive = x > 0
    return torch.where(positive, torch.where(positive, x, torch.ones_like(x)).sqrt(), 0.0)


def rows(features: Tensor) -> Tensor:
    """Each sample's features as one vector: [B, ...] -> [B, D]."""
    return features.flatten(1)


def maps(features: Tensor) -> Tensor:
    """Channels first and one axis of positions: [B, C, H, W], tokens [B, N, C], [B, C] -> [B, C, X]."""
    if features.dim() == 2:
        return features[..., None]
    return features.transpose(1, 2) if features.dim() == 3 else features.flatten(2)


def nothing(student: Tensor) -> Tensor:
    """The loss of a batch with too few samples to relate: 0, with a graph whose gradient is 0."""
    return student[:0].sum()

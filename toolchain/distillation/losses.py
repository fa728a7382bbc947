r"""Distillation losses: plain functions of a student's and a teacher's tensor.

    kl           T^2 sum_c p_c log(p_c / q_c), mean over B; p = softmax(z_t / T), q of z_s
                 (Hinton, Vinyals, Dean 2015, arXiv 1503.02531)
    logit_mse    mean over B and C of (z_s - z_t)^2
                 (Ba, Caruana 2014, arXiv 1312.6184)
    at           mean over B and X of (a(f_s) - a(f_t))^2, a(f)_x = sum_c f_cx^2 / |sum_c f_c^2|_2
                 (Zagoruyko, Komodakis 2017, arXiv 1612.03928)
    feature_mse  mean of (r(f_s) - f_t)^2, r a 1x1 regressor where the channels differ
                 (FitNets: Romero et al. 2015, arXiv 1412.6550)

Losses are computed in float32, whatever the features are in. The teacher's tensor carries no
gradient. Axes: B batch, C classes or channels, X positions (all axes after the second).
"""

from __future__ import annotations

import inspect
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any, Literal, TypeVar

from torch import Tensor
from torch.nn import functional as F

from deploy.errors import ConfigError
from toolchain.distillation.registry import Registry, unknown

Function = TypeVar("Function", bound=Callable[..., Tensor])


@dataclass(frozen=True)
class LossEntry:
    """A loss as a recipe knows it.

    Attributes:
        name: In recipes.
        function: ``function(student, teacher, **options) -> scalar``; it is given ``labels_B`` too
            if it has such a parameter.
        match: What must agree between student and teacher: all axes (an adapter is put where only
            channels differ), or all but channels.
        source: Who described it.
    """

    name: str
    function: Callable[..., Tensor]
    match: Literal["shape", "positions"]
    source: str

    @property
    def options(self) -> dict[str, Any]:
        """Keyword options and their defaults."""
        parameters = inspect.signature(self.function).parameters.values()
        return {p.name: p.default for p in parameters if p.default is not p.empty}

    @property
    def needs_labels(self) -> bool:
        """Whether the loss looks at the labels."""
        return "labels_B" in inspect.signature(self.function).parameters

    def bind(self, **options: Any) -> Callable[..., Tensor]:
        """The function with its options set.

        Raises:
            ConfigError: The loss has no such option.
        """
        for option in options:
            if option not in self.options:
                raise ConfigError(f"distil.losses ({self.name}): {unknown(option, self.options)}")
        return partial(self.function, **options)


LOSSES: Registry[LossEntry] = Registry("distil.losses")


def distillation_loss(
    name: str, *, match: Literal["shape", "positions"], source: str
) -> Callable[[Function], Function]:
    """Register a loss under ``name``; a name that is taken is refused."""

    def register(function: Function) -> Function:
        LOSSES.add(name, LossEntry(name, function, match, source))
        return function

    return register


@distillation_loss("kl", match="shape", source="Hinton, Vinyals, Dean 2015")
def kl(student_BC: Tensor, teacher_BC: Tensor, temperature: float = 4.0) -> Tensor:
    """Divergence of softened classes; T^2 keeps the gradient's scale independent of T."""
    log_q_BC = F.log_softmax(student_BC.float() / temperature, dim=1)
    log_p_BC = F.log_softmax(teacher_BC.float() / temperature, dim=1)
    divergence = F.kl_div(log_q_BC, log_p_BC, reduction="batchmean", log_target=True)
    return temperature**2 * divergence


@distillation_loss("logit_mse", match="shape", source="Ba, Caruana 2014")
def logit_mse(student_BC: Tensor, teacher_BC: Tensor) -> Tensor:
    """Mean squared difference of logits."""
    return F.mse_loss(student_BC.float(), teacher_BC.float())


@distillation_loss("at", match="positions", source="Zagoruyko, Komodakis 2017")
def at(student_BCX: Tensor, teacher_BCX: Tensor) -> Tensor:
    """Mean squared difference of normalized attention maps; channel counts may differ."""
    return F.mse_loss(_attention(student_BCX), _attention(teacher_BCX))


@distillation_loss("feature_mse", match="shape", source="FitNets: Romero et al. 2015")
def feature_mse(student_BCX: Tensor, teacher_BCX: Tensor) -> Tensor:
    """Mean squared difference of features (FitNet's hint)."""
    return F.mse_loss(student_BCX.float(), teacher_BCX.float())


def _attention(features_BCX: Tensor) -> Tensor:
    energy_BX = features_BCX.float().square().sum(1).flatten(1)
    return F.normalize(energy_BX, dim=1)

"""Losses by name: what each needs, joins and accepts, and where it was described."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any, Literal, TypeVar, get_type_hints

from torch import Tensor, nn

from toolchain.distillation.options import Positive, check_options
from toolchain.distillation.registry import Registry

Loss = TypeVar("Loss", bound=Callable[..., Any])
Match = Literal["classes", "shape", "positions", "batch", "exit", "pair", "own"]

# A learned temperature is a tensor: a scalar, or one value per sample [B].
Temperature = Positive | Tensor

# What a batch has beyond its images, by the name of the parameter that asks for it.
BATCH_PARTS = ("labels_B", "index_B")


@dataclass(frozen=True)
class LossEntry:
    """A loss as a recipe knows it: a plain function, or a module where it learns or remembers.

    Attributes:
        name: In recipes.
        function: ``function(student, teacher, **options) -> scalar``; None for a module.
        match: What must agree between student and teacher. ``classes``: both are vectors of as many
            values. ``shape``: all axes, an adapter is put where
            they do not. ``positions``: all but channels. ``batch``: only the batch. ``exit``: the
            student's feature goes through an exit branch into the teacher's classes. ``pair``: as
            ``positions`` and channels, at two spots; the function gets tuples. ``own``: nothing, the
            module joins the two shapes.
        source: Who described it.
        equation: In a line.
        default_strength: The weight that is customary in the literature; shown, never applied silently.
        build: ``build(student_shape, teacher_shape, **options)``, a subclass of ``nn.Module`` whose
            ``forward(student, teacher)`` gives the scalar; None for a plain function.
        version: Counted up when it trains another student with the same options.
    """

    name: str
    function: Callable[..., Tensor] | None
    match: Match
    source: str
    equation: str = ""
    default_strength: float | None = None
    build: type[nn.Module] | None = None
    version: int = 1

    def __post_init__(self) -> None:
        if (self.function is None) == (self.build is None):
            raise ValueError(f"{self.name!r}: a loss is either a function or a module")

    @property
    def options(self) -> Mapping[str, Any]:
        """Keyword options and their defaults."""
        made = self.function or self.build
        assert made is not None
        parameters = inspect.signature(made).parameters.values()
        return {p.name: p.default for p in parameters if p.default is not p.empty}

    @property
    def needs(self) -> frozenset[str]:
        """Parts of the batch that are handed over by name: ``labels_B``, ``index_B``."""
        called = self.function if self.build is None else self.build.forward
        assert called is not None
        return frozenset(BATCH_PARTS) & frozenset(inspect.signature(called).parameters)

    def bind(self, **options: Any) -> Callable[..., Any]:
        """The function with its options set, or, for a module, what makes it of two shapes.

        Raises:
            ConfigError: The loss has no such option, or the option does not take such a value.
        """
        made = self.function or self.build
        assert made is not None
        types = get_type_hints(
            self.function if self.build is None else self.build.__init__, include_extras=True
        )
        known = {option: types[option] for option in self.options}
        check_options(f"distil.losses ({self.name})", options, known)
        return partial(made, **options)


# The modules that register losses; they are imported when a name is first asked for.
LOSSES: Registry[LossEntry] = Registry(
    "distil.losses",
    tuple(
        f"toolchain.distillation.losses.{module}"
        for module in (
            "logits",
            "one_for_all",
            "maps",
            "relations",
            "correlation",
            "variational",
            "factors",
            "contrast",
        )
    ),
)


def distillation_loss(
    name: str,
    *,
    match: Match,
    source: str,
    equation: str = "",
    default_strength: float | None = None,
    version: int = 1,
) -> Callable[[Loss], Loss]:
    """Register a function or a module class under ``name``; a name that is taken is refused."""

    def register(loss: Loss) -> Loss:
        plain = None if isinstance(loss, type) else loss
        module = loss if isinstance(loss, type) else None
        entry = LossEntry(name, plain, match, source, equation, default_strength, module, version)
        LOSSES.add(name, entry)
        return loss

    return register

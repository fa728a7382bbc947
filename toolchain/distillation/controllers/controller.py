"""The seam between a student's loss and whoever sets the strengths of its terms.

A strength is the weight of a term in the student's loss; the term ``task`` is the cross-entropy
with the labels. Within a step a controller is asked three times: for the strengths, before anything
is computed; by its own optimizers' updates, if it has any; and for its guidance, once the student has
seen the batch.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

from torch import Tensor, nn

from deploy.errors import ConfigError
from toolchain.distillation.options import check_options
from toolchain.distillation.registry import Registry
from toolchain.training.objective import Update

if TYPE_CHECKING:
    from toolchain.distillation.config import Distil
    from toolchain.distillation.lessons import Lesson, School

Stats = Mapping[str, float | Tensor]


@dataclass(frozen=True)
class Guidance:
    """What a controller decides once the student has seen the batch. Axes: B batch.

    Attributes:
        samples: Which samples [B] (bool) a term sees, by the term's name; absent: all of them.
        options: Further keyword arguments of a term's loss, e.g. a temperature, by the term's name.
    """

    samples: Mapping[str, Tensor] = field(default_factory=dict)
    options: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)


class Controller(Protocol):
    """Sets strengths; a learning one keeps what it learned in its state."""

    @property
    def updates(self) -> Sequence[Update]:
        """Optimizers of its own, which every step runs before the student's update."""
        ...

    @property
    def parameters(self) -> Sequence[nn.Parameter]:
        """What the student's own update moves besides the student, e.g. a learned temperature."""
        ...

    def strengths(self, step: int, total_steps: int, stats: Stats) -> Mapping[str, float]:
        """Strength of each term for ``step`` (from 0); ``stats`` are the last step's terms."""
        ...

    def guide(self, lesson: Lesson) -> Guidance:
        """What holds for this batch alone."""
        ...

    def trail(self) -> Mapping[str, float | Tensor]:
        """Numbers to write down at every step, those on a device as scalar tensors; empty where the recipe
        says it all.
        """
        ...

    def keep(self, out: Path) -> None:
        """Write what was learned into the finished artifact, beside the student and never inside it."""
        ...

    def state_dict(self) -> dict[str, Any]:
        """Tensors and numbers that a resumed run needs."""
        ...

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restore what ``state_dict`` returned."""
        ...


class Steady:
    """All of a controller but its strengths, for one that neither learns nor looks at a batch."""

    updates: Sequence[Update] = ()
    parameters: Sequence[nn.Parameter] = ()

    def guide(self, lesson: Lesson) -> Guidance:
        """Every sample, nothing further."""
        return Guidance()

    def trail(self) -> Mapping[str, float | Tensor]:
        """Nothing."""
        return {}

    def keep(self, out: Path) -> None:
        """Nothing was learned."""

    def state_dict(self) -> dict[str, Any]:
        """Empty."""
        return {}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Accept the empty state."""


@dataclass(frozen=True)
class ControllerEntry:
    """A controller as a recipe knows it.

    Attributes:
        name: In recipes.
        build: ``build(school, **options) -> Controller``.
        about: What it does, in a line.
        source: Who described it; empty for what nobody has to be credited for.
        held_out: Whether it learns from samples that the student is never fitted on; its option
            ``held_out`` is then the share of the training part that is cut away.
        require_losses: ``require_losses(distil)`` refuses, before there is a network, losses and teachers
            that it cannot work with.
        require: ``require(options, samples)`` refuses, with all options given, a held-out part of too few
            samples.
        version: Counted up when it trains another student with the same options.
    """

    name: str
    build: Callable[..., Controller]
    about: str
    source: str = ""
    held_out: bool = False
    require_losses: Callable[[Distil], None] | None = None
    require: Callable[[Mapping[str, Any], int], None] | None = None
    version: int = 1

    @property
    def options(self) -> dict[str, Any]:
        """Keyword options and their defaults."""
        parameters = inspect.signature(self.build).parameters.values()
        return {p.name: p.default for p in parameters if p.kind is p.KEYWORD_ONLY}

    def held_out_share(self, options: Mapping[str, Any]) -> float:
        """The share of the training part that it keeps for itself, 0 where it keeps none."""
        if not self.held_out:
            return 0.0
        return float(options.get("held_out", self.options["held_out"]))

    def check_held_out(self, options: Mapping[str, Any], samples: int) -> None:
        """Refuse, before anything is built, a held-out part in which there is too little to learn from.

        Raises:
            ConfigError: Says how many samples it needs.
        """
        if self.require is not None:
            self.require({**self.options, **options}, samples)

    def make(self, school: School, options: Mapping[str, Any]) -> Controller:
        """The controller with its options set.

        Raises:
            ConfigError: It has no such option, or does not take such a value.
        """
        self.check(options)
        return self.build(school, **options)

    def check(self, options: Mapping[str, Any]) -> None:
        """Refuse, before anything is built, options that it does not take, or lacks.

        Raises:
            ConfigError: Names the option, and what is accepted.
        """
        where = f"distil.controller_options ({self.name})"
        parameters = inspect.signature(self.build, eval_str=True).parameters
        check_options(where, options, {name: parameters[name].annotation for name in self.options})
        for name, default in self.options.items():
            if default is inspect.Parameter.empty and name not in options:
                raise ConfigError(f"{where}: {name} is required, and not given; set it")


# The modules that register controllers; they are imported when a name is first asked for.
CONTROLLERS: Registry[ControllerEntry] = Registry(
    "distil.controller",
    (
        "toolchain.distillation.controllers.fixed",
        "toolchain.distillation.controllers.ramp",
        "toolchain.distillation.controllers.spot_adaptive.controller",
        "toolchain.distillation.controllers.temperature",
        "toolchain.dean.controller",
        "toolchain.dean.replay",
    ),
)


def controller(
    name: str,
    *,
    about: str,
    source: str = "",
    held_out: bool = False,
    require_losses: Callable[[Distil], None] | None = None,
    require: Callable[[Mapping[str, Any], int], None] | None = None,
    version: int = 1,
) -> Callable[[Callable[..., Any]], Callable[..., Any]]:
    """Register a controller under ``name``; a name that is taken is refused."""

    def register(build: Callable[..., Any]) -> Callable[..., Any]:
        entry = ControllerEntry(
            name, build, about, source, held_out, require_losses, require, version
        )
        CONTROLLERS.add(name, entry)
        return build

    return register

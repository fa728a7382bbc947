"""Greedy allocation: again and again the step that loses the least importance for what it saves.

    step = argmin  loss of importance / (multiply-accumulates or microseconds saved)

Small integer convolutions get cheaper in jumps of 16 channels, if at all, and a layer that is gone is
always cheaper. Hence, where times were measured, a step may skip widths and counts only if the time
falls, and whole residual branches compete with channels.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass

from toolchain.structure.cost import Measure
from toolchain.structure.plan import Branch
from toolchain.structure.space import Allocation, Space, out_of_reach

NOISE = 0.02  # a smaller share of the layers' time is not a saving: it would not be measured twice


@dataclass(frozen=True)
class _Step:
    """A group's next width, or a branch that goes."""

    loss: float
    name: str
    width: int = 0
    branch: Branch | None = None


def greedy(space: Space, goal: Mapping[str, float], own: Measure) -> Allocation:
    """Step by the saving in ``own`` until its goal holds, then by those of the goals still unmet.

    Raises:
        StructureError: No step is left and a goal is not met.
    """
    descent = _Descent(space)
    while missed := space.unmet(goal, descent.widths, descent.removed):
        measures: list[Measure] = [own] if own not in goal or own in missed else []
        measures += [name for name in missed if name not in (own, "sparsity")]  # type: ignore[misc]
        if not any(descent.step(measure) for measure in measures or [own]):
            name = missed[0]
            raise out_of_reach(goal, name, space.left(name, descent.widths, descent.removed))
    descent.give_back(goal)
    return space.result(descent.widths, descent.removed)


class _Descent:
    """Widths and removed branches on their way down."""

    def __init__(self, space: Space) -> None:
        self._space = space
        self._cost = space.cost
        self.widths = space.full()
        self.removed: list[Branch] = []
        self._modules = {name: self._cost.modules_of(group) for name, group in space.groups.items()}
        self._ladder = {name: self._widths(name) for name in space.groups}
        self._cache: dict[tuple[Measure, str], tuple[float, _Step] | None] = {}

    def _widths(self, name: str) -> tuple[int, ...]:
        allowed = self._space.options[name]
        if self._cost.latency is None:
            return allowed
        measured = set(self._cost.latency.widths(allowed[-1]))
        return tuple(width for width in allowed if width in measured or width == allowed[-1])

    def step(self, measure: Measure) -> bool:
        """Take the best step by this measure; False if none saves anything."""
        found = [best for best in self._best_steps(measure) if best is not None]
        if not found:
            return False
        _, step = min(found, key=lambda entry: (entry[0], entry[1].name))
        if step.branch is not None:
            self.removed = [
                branch
                for branch in self.removed
                if not set(branch.modules) <= set(step.branch.modules)
            ]
            self.removed.append(step.branch)
            self._forget(step.branch.modules)
        else:
            self.widths[step.name] = step.width
            self._forget(self._modules[step.name])
        return True

    def give_back(self, goal: Mapping[str, float]) -> None:
        """Undo what turned out not to be needed, the most important first."""
        for branch in sorted(self.removed, key=lambda b: -self._space.branch_loss(b, self.widths)):
            rest = [other for other in self.removed if other is not branch]
            if not self._space.unmet(goal, self.widths, rest):
                self.removed = rest
        regained = sorted(self.widths, key=lambda n: -self._space.loss(n, self.widths[n]))
        for name in regained:
            for width in self._ladder[name]:
                if width <= self.widths[name]:
                    continue
                wider = {**self.widths, name: width}
                if self._space.unmet(goal, wider, self.removed):
                    break
                self.widths = wider

    def _best_steps(self, measure: Measure) -> Iterator[tuple[float, _Step] | None]:
        gone = {module for branch in self.removed for module in branch.modules}
        for name, modules in self._modules.items():
            key = (measure, name)
            if key not in self._cache:
                left = [module for module in modules if module not in gone]
                self._cache[key] = self._best_width(measure, name, left)
            yield self._cache[key]
        # Each costs by itself as if its neighbours stayed, so the limit is what protects a network
        # from losing all its depth to an ambitious goal.
        room = len(self.removed) < self._space.most_removed
        for branch in self._space.branches if room else ():
            key = (measure, f"branch {branch.name}")
            if key not in self._cache:
                left = [
                    module
                    for module in branch.modules
                    if module in self._cost.cost.layers and module not in gone
                ]
                self._cache[key] = self._without(measure, branch, left)
            yield self._cache[key]

    def _best_width(
        self, measure: Measure, name: str, modules: list[str]
    ) -> tuple[float, _Step] | None:
        """The best of the smaller widths, as (loss per saving, step)."""
        now = self.widths[name]
        smaller = [width for width in self._ladder[name] if width < now]
        if self._cost.latency is None:
            smaller = smaller[-1:]  # what is computed falls with every channel: no width to skip
        best: tuple[float, _Step] | None = None
        for width in smaller:
            saved = self._saved(measure, modules, {**self.widths, name: width})
            if saved <= 0:
                continue
            loss = self._space.loss(name, width) - self._space.loss(name, now)
            if best is None or loss / saved < best[0]:
                best = (loss / saved, _Step(loss, name, width))
        return best

    def _saved(self, measure: Measure, modules: list[str], widths: Mapping[str, int]) -> float:
        """What a step saves; 0 for one that measured time does not reward."""

        def saving(measure: Measure) -> tuple[float, float]:
            before = self._cost.of(measure, self.widths, (), modules)
            return before - self._cost.of(measure, widths, (), modules), before

        saved, _ = saving(measure)
        if self._cost.latency is not None:
            saved_us, before_us = saving("latency")
            if saved_us < NOISE * before_us * (1 if measure == "latency" else -1):
                return 0.0
        return saved

    def _without(
        self, measure: Measure, branch: Branch, modules: list[str]
    ) -> tuple[float, _Step] | None:
        saved = self._cost.of(measure, self.widths, (), modules)
        if saved <= 0:
            return None
        loss = self._space.branch_loss(branch, self.widths)
        return loss / saved, _Step(loss, f"branch {branch.name}", branch=branch)

    def _forget(self, modules: tuple[str, ...]) -> None:
        """Drop what was computed for steps that share a module with the one taken."""
        changed = set(modules)
        stale = {name for name, own in self._modules.items() if changed & set(own)}
        stale |= {
            f"branch {branch.name}"
            for branch in self._space.branches
            if changed & set(branch.modules)
        }
        self._cache = {key: best for key, best in self._cache.items() if key[1] not in stale}

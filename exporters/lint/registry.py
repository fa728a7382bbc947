"""The registry of rules: identifier to rule, each with its levels, explanation and remedy."""

from __future__ import annotations

import difflib
import importlib
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass

from deploy.errors import ConfigError
from exporters.lint.finding import Finding, Level
from exporters.lint.target import LintTarget
from exporters.lint.view import GraphView

TENSORRT = ("tensorrt", "tensorrt-fp16")
EVERYWHERE = (*TENSORRT, "ort-cpu")
FAMILIES = (
    "files",
    "operators",
    "signatures",
    "grids",
    "weights",
    "pairs",
    "placement",
    "dtypes",
    "shapes",
    "widths",
    "ort_cpu",
    "dla",
)


@dataclass(frozen=True)
class Hit:
    """Where a rule struck; ``level`` and the two facts replace the rule's own where they are given."""

    node: str
    message: str
    level: Level | None = None
    refused: bool | None = None
    stays_float: bool | None = None
    remedy: str | None = None


Check = Callable[[GraphView, LintTarget], Iterator[Hit]]


@dataclass(frozen=True)
class Rule:
    """A rule of one target or several.

    ``levels`` has the targets that it applies to.  ``explanation`` says what happens and how that is
    known; ``refused`` whether NVIDIA's importer takes no graph that breaks the rule.
    """

    id: str
    levels: Mapping[str, Level]
    title: str
    explanation: str
    remedy: str
    refused: bool
    stays_float: bool
    check: Check

    def findings(self, view: GraphView, target: LintTarget) -> Iterator[Finding]:
        level = self.levels.get(target.runtime)
        if level is None:
            return
        for hit in self.check(view, target):
            refused = self.refused if hit.refused is None else hit.refused
            stays_float = self.stays_float if hit.stays_float is None else hit.stays_float
            yield Finding(
                self.id,
                hit.level or level,
                hit.node,
                hit.message,
                hit.remedy or self.remedy,
                refused_by_importer=refused and target.is_tensorrt,
                stays_float=stays_float and not target.is_tensorrt,
            )


_RULES: dict[str, Rule] = {}


def rule(
    id: str,
    *,
    title: str,
    explanation: str,
    remedy: str,
    tensorrt: Level | None = None,
    ort_cpu: Level | None = None,
    refused: bool = False,
    stays_float: bool = False,
) -> Callable[[Check], Check]:
    """Register a check under ``id``, with its level for each kind of target; a second owner is refused."""

    def register(check: Check) -> Check:
        assert id not in _RULES, f"{id} is registered twice"
        levels: dict[str, Level] = {}
        if tensorrt is not None:
            levels.update(dict.fromkeys(TENSORRT, tensorrt))
        if ort_cpu is not None:
            levels["ort-cpu"] = ort_cpu
        _RULES[id] = Rule(
            id,
            levels,
            title,
            " ".join(explanation.split()),
            " ".join(remedy.split()),
            refused,
            stays_float,
            check,
        )
        return check

    return register


def rules() -> dict[str, Rule]:
    """All rules by identifier, family by family."""
    for family in FAMILIES:
        importlib.import_module(f"exporters.lint.rules.{family}")
    return _RULES


def find_rule(id: str) -> Rule:
    """The rule of this identifier.

    Raises:
        ConfigError: There is none.
    """
    known = rules()
    if id.upper() not in known:
        near = difflib.get_close_matches(id.upper(), known, 1)
        hint = f"did you mean {near[0]}?" if near else "compress-deploy lint --rules lists them"
        raise ConfigError(f"--explain: there is no rule {id!r}; {hint}")
    return known[id.upper()]

"""Records against each other: differences with intervals of 95 %, between equals only.

Two records are comparable when their modes are equal; each that is not has to be allowed by name,
and is then told beside the numbers.  Records come from different runs, so what drifted between them
is part of a difference and not of its interval.  Where both measured the same teacher, that drift
can be taken away: the student's gain over the teacher of its own run is compared too.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Mapping, Sequence

from benchmarks.records.figures import samples_of_record
from benchmarks.records.record import require_complete
from benchmarks.statistics.intervals import (
    REPLICATES,
    Comparison,
    compare_gains,
    compare_means,
    compare_percentiles,
)
from deploy.errors import ConfigError, DataError

PERCENTS = (50.0, 90.0, 99.0)
ALL = "all"
# Of the machine, beside the modes: another processor is another device.
_MACHINE = ("board", "cpu_model", "architecture", "governor", "l4t", "driver")


@dataclass(frozen=True)
class Difference:
    """A number of one model in two records; ``second`` against ``first``.

    ``interval`` is that of ``ratio``, second over first; ``differs`` whether it leaves 1 out.
    ``unit`` is of the numbers: ms, /s, J, or "" for a gain.
    """

    model: str
    what: str
    unit: str
    first: float
    second: float
    ratio: float
    interval: tuple[float, float] | None
    difference_interval: tuple[float, float] | None

    @property
    def differs(self) -> bool | None:
        if self.interval is None:
            return None
        low, high = self.interval
        return not low <= 1 <= high

    def to_dict(self) -> dict[str, Any]:
        return {
            "model": self.model,
            "what": self.what,
            "unit": self.unit,
            "first": self.first,
            "second": self.second,
            "difference": self.second - self.first,
            "difference_interval95": _listed(self.difference_interval),
            "ratio": self.ratio,
            "ratio_interval95": _listed(self.interval),
            "differs": self.differs,
        }


@dataclass(frozen=True)
class Compared:
    """Every difference of two records, and the modes in which they differ all the same."""

    first: str
    second: str
    allowed: Mapping[str, tuple[Any, Any]]
    differences: tuple[Difference, ...]

    def to_dict(self) -> dict[str, Any]:
        return {
            "first": self.first,
            "second": self.second,
            "allowed": {mode: list(values) for mode, values in self.allowed.items()},
            "differences": [each.to_dict() for each in self.differences],
        }


def different_modes(
    first: Mapping[str, Any], second: Mapping[str, Any]
) -> dict[str, tuple[Any, Any]]:
    """Modes by name in which two records differ, with both values; a version is ``versions.X``."""
    sides = [_modes(record) for record in (first, second)]
    names = [*sides[0], *(name for name in sides[1] if name not in sides[0])]
    pairs = {name: (sides[0].get(name), sides[1].get(name)) for name in names}
    return {name: pair for name, pair in pairs.items() if pair[0] != pair[1]}


def compare_records(
    first: Mapping[str, Any],
    second: Mapping[str, Any],
    names: tuple[str, str],
    allow: Sequence[str] = (),
    *,
    replicates: int = REPLICATES,
) -> Compared:
    """``second`` against ``first``; ``allow`` names modes that may differ, or is ``["all"]``.

    ``names`` are what messages call them, such as paths.

    Raises:
        DataError: One is partial or invalid, or they have no model in common.
        ConfigError: They differ in a mode that is not allowed, or an allowed one does not exist.
    """
    for record, name in zip((first, second), names):
        require_complete(record, name)
    differing = different_modes(first, second)
    known = {*_modes(first), *_modes(second), "versions", ALL}
    unknown = sorted(set(allow) - known)
    if unknown:
        raise ConfigError(
            f"allow-different: unknown {', '.join(unknown)}; choose from {', '.join(sorted(known))}"
        )
    refused = [
        f"{mode} ({_shown(pair[0])} against {_shown(pair[1])})"
        for mode, pair in differing.items()
        if not {mode, mode.partition(".")[0], ALL} & set(allow)
    ]
    if refused:
        raise ConfigError(
            f"{names[0]} and {names[1]} were not measured alike: {', '.join(refused)}; measure "
            "again alike, or accept it with --allow-different MODE"
        )
    models = [model for model in first["models"] if model in second["models"]]
    if not models:
        raise DataError(
            f"{names[0]} has {list(first['models'])} and {names[1]} {list(second['models'])}; "
            "give records with a model in common"
        )
    differences = []
    for model in models:
        differences += _of_model(model, first["models"][model], second["models"][model], replicates)
    differences += _of_gain(first, second, replicates)
    return Compared(names[0], names[1], differing, tuple(differences))


def _of_model(
    model: str, first: Mapping[str, Any], second: Mapping[str, Any], replicates: int
) -> list[Difference]:
    made = []
    one, other = (samples_of_record(side["latency_ms"]) for side in (first, second))
    for percent in PERCENTS:
        key = f"p{percent:g}"
        before, after = (side["latency_ms"].get(key) for side in (first, second))
        if before is None or after is None:
            continue
        compared = compare_percentiles(other, one, percent, paired=False, replicates=replicates)
        made.append(_difference(model, key, "ms", before, after, compared))
    before, after = (side.get("throughput_per_s") for side in (first, second))
    if before and after and "server" not in first:
        # Throughput is samples over mean latency, so its ratio is that of means, turned round.
        compared = compare_means(one, other, paired=False, replicates=replicates)
        scale = second["samples_per_query"] / first["samples_per_query"]
        interval = (compared.ratio_interval[0] * scale, compared.ratio_interval[1] * scale)
        made.append(
            Difference(model, "throughput", "/s", before, after, after / before, interval, None)
        )
    for key, label in (("total_j", "energy"), ("net_j", "net energy")):
        before, after = ((side.get("energy") or {}).get(key) for side in (first, second))
        if before is not None and after is not None:
            made.append(_of_energy(model, label, key, first, second))
    return made


def _of_energy(
    model: str, label: str, key: str, first: Mapping[str, Any], second: Mapping[str, Any]
) -> Difference:
    """By the meter's own standard deviations, where it told them; two of them make 95 %."""
    name = "uncertainty_j" if key == "total_j" else "net_uncertainty_j"
    before, after = (float(side["energy"][key]) for side in (first, second))
    spreads = [side["energy"].get(name) for side in (first, second)]
    ratio = after / before if before else float("nan")
    if None in spreads or not before > 0 or not after > 0:
        return Difference(model, label, "J", before, after, ratio, None, None)
    one, other = (float(spread) for spread in spreads)
    half = 1.96 * (one**2 + other**2) ** 0.5
    relative = 1.96 * ((one / before) ** 2 + (other / after) ** 2) ** 0.5
    return Difference(
        model,
        label,
        "J",
        before,
        after,
        ratio,
        (ratio * (1 - relative), ratio * (1 + relative)),
        (after - before - half, after - before + half),
    )


def _of_gain(
    first: Mapping[str, Any], second: Mapping[str, Any], replicates: int
) -> list[Difference]:
    """The student's speedup over the teacher of its own run, where the teacher is the same file."""
    sides = [record["models"] for record in (first, second)]
    if not all({"teacher", "student"} <= set(models) for models in sides):
        return []
    if sides[0]["teacher"]["sha256"] != sides[1]["teacher"]["sha256"]:
        return []
    if any(record["modes"]["scenario"] == "server" for record in (first, second)):
        return []
    pairs = [
        tuple(samples_of_record(models[name]["latency_ms"]) for name in ("teacher", "student"))
        for models in sides
    ]
    before, after = (record["speedup"]["p50"] for record in (first, second))
    if before is None or after is None or any(one.rounds != other.rounds for one, other in pairs):
        return []
    (teacher_1, student_1), (teacher_2, student_2) = pairs
    compared = compare_gains(
        (teacher_2, student_2), (teacher_1, student_1), 50, replicates=replicates
    )
    return [_difference("student", "speedup", "", before, after, compared)]


def _difference(
    model: str, what: str, unit: str, before: float, after: float, compared: Comparison
) -> Difference:
    return Difference(
        model,
        what,
        unit,
        before,
        after,
        after / before if before else float("nan"),
        compared.ratio_interval,
        compared.difference_interval,
    )


def _modes(record: Mapping[str, Any]) -> dict[str, Any]:
    flat = {key: value for key, value in record["modes"].items() if key != "versions"}
    versions = record["modes"]["versions"]
    flat.update({f"versions.{name}": version for name, version in versions.items()})
    machine = record["environment"]
    flat.update({key: machine[key] for key in _MACHINE if key in machine})
    return flat


def _shown(value: Any) -> str:
    return "not known" if value is None else str(value)


def _listed(interval: tuple[float, float] | None) -> list[float] | None:
    return None if interval is None else list(interval)

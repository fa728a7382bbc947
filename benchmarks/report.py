"""A run as a report: ``report.json`` for tools, ``report.md`` for people, every delta computed.

Units: top-1 in percent and its differences in percentage points, sizes in bytes, latencies in ms.
"""

from __future__ import annotations

import json
import math
import os
from pathlib import Path
from typing import Any, Mapping, Sequence, Tuple

from deploy.errors import ConfigError
from deploy.whole_file import write_whole

VERSION = 1
GOALS = ("macs", "parameters", "accuracy_drop", "latency", "latency_ms")
Row = Tuple[str, str, str, str]


def evaluate_goals(
    goals: Mapping[str, float | None], teacher: Mapping[str, Any], student: Mapping[str, Any]
) -> dict[str, dict[str, Any]]:
    """What was asked, what was reached, and whether the goal is met, for each goal that is set.

    ``macs``, ``parameters`` and ``latency`` (p50) are shares of the teacher's; ``accuracy_drop`` is
    in points of top-1; ``latency_ms`` is the student's p50.  Met means reached <= asked; what is
    not known or not a number meets nothing, and is ``None`` in ``reached``.

    Raises:
        ConfigError: There is no such goal.
    """
    student_p50, teacher_p50 = (
        _number(student, "latency_ms", "p50"),
        _number(teacher, "latency_ms", "p50"),
    )
    reached = {
        "macs": _share(_number(student, "macs"), _number(teacher, "macs")),
        "parameters": _share(_number(student, "parameters"), _number(teacher, "parameters")),
        "accuracy_drop": round(_number(teacher, "top1") - _number(student, "top1"), 9),
        "latency": _share(student_p50, teacher_p50),
        "latency_ms": student_p50,
    }
    unknown = sorted(set(goals) - set(reached))
    if unknown:
        raise ConfigError(f"goals: unknown {unknown}; choose from {list(GOALS)}")
    return {
        name: {"asked": asked, "reached": _finite(reached[name]), "met": reached[name] <= asked}
        for name, asked in goals.items()
        if asked is not None
    }


def build_report(
    *,
    name: str,
    seed: int,
    teacher: Mapping[str, Any],
    student: Mapping[str, Any],
    goals: Mapping[str, float | None],
    stages: Sequence[Mapping[str, Any]] = (),
    environment: Mapping[str, Any] | None = None,
    method: Sequence[str] = (),
    notes: Sequence[str] = (),
    **extra: Any,
) -> dict[str, Any]:
    """The report of one run as plain data.

    ``teacher`` and ``student`` hold ``top1``, ``parameters``, ``macs``, ``size_bytes`` and
    ``latency_ms: {p50, p90}``; the student also ``onnx``.  ``stages`` are ``{name, seconds,
    metrics}`` in order, those that trained with the file name of their ``log`` too; ``method`` says in
    sentences how things were measured; ``notes`` what a reader must know, such as layers left in float.
    ``extra`` is kept as it is.

    Raises:
        ConfigError: A network lacks one of its numbers, or a goal is unknown.
    """
    for who, network in (("teacher", teacher), ("student", student)):
        missing = [
            key
            for key in ("top1", "parameters", "macs", "size_bytes", "latency_ms")
            if key not in network
        ]
        if missing:
            raise ConfigError(f"report: the {who} lacks {missing}; measure it, or give None")
    if "onnx" not in student:
        raise ConfigError("report: the student lacks 'onnx'; give the path of its model file")
    return {
        **extra,
        "report_version": VERSION,
        "name": name,
        "seed": seed,
        "teacher": dict(teacher),
        "student": dict(student),
        "comparison": compare(teacher, student),
        "goals": evaluate_goals(goals, teacher, student),
        "stages": [dict(stage) for stage in stages],
        "method": list(method),
        "notes": list(notes),
        "environment": dict(environment or {}),
    }


def compare(teacher: Mapping[str, Any], student: Mapping[str, Any]) -> dict[str, float | None]:
    """Shares kept, times fewer, smaller and faster, and points of top-1 gained (negative: lost)."""
    numbers: dict[str, float] = {
        "top1_points": round(_number(student, "top1") - _number(teacher, "top1"), 9)
    }
    for key, times in (
        ("macs", "times_fewer_macs"),
        ("parameters", "times_fewer_parameters"),
        ("size_bytes", "times_smaller"),
    ):
        numbers[f"{key}_share"] = _share(_number(student, key), _number(teacher, key))
        numbers[times] = _share(_number(teacher, key), _number(student, key))
    for percentile in ("p50", "p90"):
        fast = _number(student, "latency_ms", percentile)
        slow = _number(teacher, "latency_ms", percentile)
        numbers[f"latency_{percentile}_share"] = _share(fast, slow)
        numbers[f"times_faster_{percentile}"] = _share(slow, fast)
    return {key: _finite(value) for key, value in numbers.items()}


def goals_met(report: Mapping[str, Any]) -> bool:
    """Whether every goal that was asked is met; true when none was asked."""
    return all(goal["met"] for goal in report["goals"].values())


def summary_rows(report: Mapping[str, Any]) -> list[Row]:
    """Teacher beside student: (what, teacher, student, change), ready to print."""
    teacher, student = report["teacher"], report["student"]
    delta = report["comparison"]

    def row(label: str, key: str, shown: str, change: str) -> Row:
        path = key.split(".")
        return (
            label,
            _show(_number(teacher, *path), shown),
            _show(_number(student, *path), shown),
            change,
        )

    return [
        row("top-1", "top1", "{:.2f} %", _show(_number(delta, "top1_points"), "{:+.2f} points")),
        row(
            "parameters",
            "parameters",
            "{:,.0f}",
            _times(delta, "times_fewer_parameters", "fewer", "more"),
        ),
        row("MACs", "macs", "{:,.0f}", _times(delta, "times_fewer_macs", "fewer", "more")),
        row(
            "bytes on disk",
            "size_bytes",
            "{:,.0f}",
            _times(delta, "times_smaller", "smaller", "larger"),
        ),
        row(
            "latency, median",
            "latency_ms.p50",
            "{:.3f} ms",
            _times(delta, "times_faster_p50", "faster", "slower"),
        ),
        row(
            "latency, p90",
            "latency_ms.p90",
            "{:.3f} ms",
            _times(delta, "times_faster_p90", "faster", "slower"),
        ),
    ]


def goal_rows(report: Mapping[str, Any]) -> list[Row]:
    """The goals that were asked: (goal, asked, reached, met or MISSED)."""
    return [
        (
            _GOAL_LABELS[name],
            _show(goal["asked"], _GOAL_UNITS[name], "at most "),
            _show(goal["reached"], _GOAL_UNITS[name]),
            "met" if goal["met"] else "MISSED",
        )
        for name, goal in report["goals"].items()
    ]


def write_report(report: Mapping[str, Any], folder: Path) -> tuple[Path, Path]:
    """Write ``report.json`` and ``report.md``; an absolute ``student.onnx`` becomes relative.

    Raises:
        StorageError: The folder cannot be written.
    """
    student = dict(report["student"])
    if Path(student["onnx"]).is_absolute():
        student["onnx"] = Path(os.path.relpath(student["onnx"], folder)).as_posix()
    final = _plain({**report, "student": student})
    written = folder / "report.json", folder / "report.md"
    texts = (
        json.dumps(final, indent=2, allow_nan=False, ensure_ascii=False) + "\n",
        markdown(final),
    )
    for path, text in zip(written, texts):
        write_whole(path, text, "the report", "free some space or choose another folder")
    return written


def markdown(report: Mapping[str, Any]) -> str:
    """The report as a page that opens with its result."""
    parts = [
        f"# {report['name']}",
        _headline(report),
        _table(("", "teacher", "student", "change"), summary_rows(report), "lrrl"),
    ]
    if report["goals"]:
        parts += ["## Goals", _table(("goal", "asked", "reached", ""), goal_rows(report), "lrrl")]
    if report["notes"]:
        parts += ["## What to know", _bullets(report["notes"])]
    if report["stages"]:
        rows = [
            (
                str(stage["name"]),
                _duration(stage.get("seconds")),
                ", ".join(
                    f"{key} {_value(value)}" for key, value in stage.get("metrics", {}).items()
                ),
            )
            for stage in report["stages"]
        ]
        total_s = math.fsum(stage.get("seconds") or 0 for stage in report["stages"])
        parts += [
            f"## The chain, {_duration(total_s)} in all",
            _table(("stage", "time", "what it measured"), rows, "lrl"),
        ]
    if report["method"]:
        parts += ["## How it was measured", _bullets(report["method"])]
    if report["environment"]:
        parts += ["## Where it was measured", _environment(report)]
    return "\n\n".join(parts) + "\n"


_GOAL_LABELS = {
    "macs": "MACs kept",
    "parameters": "parameters kept",
    "accuracy_drop": "drop in top-1",
    "latency": "share of the teacher's latency",
    "latency_ms": "median latency",
}
_GOAL_UNITS = {
    "macs": "{:.1%}",
    "parameters": "{:.1%}",
    "accuracy_drop": "{:.2f} points",
    "latency": "{:.1%}",
    "latency_ms": "{:.3f} ms",
}


def _headline(report: Mapping[str, Any]) -> str:
    delta = report["comparison"]
    points = _number(delta, "top1_points")
    claims = [
        f"{verb} {claim}"
        for verb, claim in (
            ("has", _times(delta, "times_fewer_macs", "fewer MACs", "more MACs")),
            ("is", _times(delta, "times_smaller", "smaller", "larger")),
            ("is", _times(delta, "times_faster_p50", "faster", "slower")),
        )
        if claim != _UNKNOWN
    ]
    accuracy = (
        "top-1 not measured"
        if math.isnan(points)
        else f"{_show(_number(report['student'], 'top1'), '{:.2f} %')} top-1, "
        f"{abs(points):.2f} points {'below' if points < 0 else 'above'} its teacher"
    )
    missed = [_GOAL_LABELS[name] for name, goal in report["goals"].items() if not goal["met"]]
    verdict = (
        f"**Missed: {', '.join(missed)}.**"
        if missed
        else "Every goal is met."
        if report["goals"]
        else "No goal was set."
    )
    known = ", ".join(claims) or "was not compared"
    return f"The student {known}: {accuracy}. {verdict}"


def _environment(report: Mapping[str, Any]) -> str:
    """What is known, a line each; of the rest the names alone: ``report.json`` has the reasons."""
    lines, unknown = [f"seed: {report['seed']}"], []
    for key, value in report["environment"].items():
        if key == "missing":
            continue
        name = key.replace("_", " ")
        shown = _in_words(value)
        if shown:
            lines.append(f"{name}: {shown}")
        elif value is None:
            unknown.append(name)
    if unknown:
        lines.append(f"not known: {', '.join(unknown)}")
    return _bullets(lines)


def _in_words(value: Any) -> str:
    """Nested values on one line, without what is empty."""
    if isinstance(value, Mapping):
        parts = {name: _in_words(item) for name, item in value.items() if name != "missing"}
        return ", ".join(f"{name} {part}" for name, part in parts.items() if part)
    if isinstance(value, (list, tuple)):
        parted = "; " if any(isinstance(item, Mapping) for item in value) else ", "
        return parted.join(filter(None, map(_in_words, value)))
    return "" if value is None else _value(value)


def _table(head: Sequence[str], rows: Sequence[Sequence[str]], align: str) -> str:
    rule = [{"l": "---", "r": "---:"}[side] for side in align]
    lines = [head, rule, *[[cell.replace("|", "\\|") for cell in row] for row in rows]]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def _bullets(lines: Sequence[str]) -> str:
    return "\n".join(f"- {line}" for line in lines)


_UNKNOWN = "not known"


def _number(source: Mapping[str, Any], *path: str) -> float:
    """The number at ``path``, NaN where it is absent or ``None``."""
    value: Any = source
    for key in path:
        value = value.get(key) if isinstance(value, Mapping) else None
    return math.nan if value is None else float(value)


def _share(part: float, whole: float) -> float:
    return part / whole if whole > 0 else math.nan


def _finite(value: float) -> float | None:
    return value if math.isfinite(value) else None


def _show(value: float | None, form: str, before: str = "") -> str:
    if value is None or not math.isfinite(value):
        return _UNKNOWN
    return before + form.format(value)


def _times(delta: Mapping[str, Any], key: str, better: str, worse: str) -> str:
    times = _number(delta, key)
    if not 0 < times < math.inf:
        return _UNKNOWN
    return f"{times:.2f} × {better}" if times >= 1 else f"{1 / times:.2f} × {worse}"


def _duration(seconds: float | None) -> str:
    if seconds is None or not math.isfinite(seconds):
        return _UNKNOWN
    if seconds < 60:
        return f"{seconds:.1f} s"
    minutes, rest = divmod(round(seconds), 60)
    return (
        f"{minutes} min {rest:02d} s"
        if minutes < 60
        else (f"{minutes // 60} h {minutes % 60:02d} min")
    )


def _value(value: Any) -> str:
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        return str(value)
    return f"{value:,}" if isinstance(value, int) else f"{value:.4g}"


def _plain(value: Any) -> Any:
    """JSON's types only: NaN and infinity become null, paths and scalars of numpy plain values."""
    if isinstance(value, Mapping):
        return {str(key): _plain(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [_plain(item) for item in value]
    if hasattr(value, "item") and not isinstance(value, (str, bytes)):
        value = value.item()
    if isinstance(value, float):
        return _finite(value)
    return str(value) if isinstance(value, Path) else value

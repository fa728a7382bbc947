"""Benchmark records as tables for people: of one run, of many devices, of a comparison."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from rich import box
from rich.table import Table

from benchmarks.records.compare import Compared, Difference

_UNKNOWN = "–"
_STATUS = {"complete": "ok", "partial": "partial", "invalid": "invalid"}
Row = tuple[str, str, str, str]


def record_table(record: Mapping[str, Any]) -> Table:
    """Teacher beside student."""
    modes = record["modes"]
    threads = f", {_count(modes['threads'], 'thread')}" if modes["provider"] == "ort-cpu" else ""
    place = record["device"]["name"]
    title = (
        f"{record['bundle']['name']} on {place}: {modes['scenario']}, {modes['profile']}, "
        f"{modes['provider']}{threads}, batch {modes['batch']}"
    )
    if record["status"] != "complete":
        title += f" ({record['status']})"
    table = Table(title=title, title_justify="left")
    table.add_column("")
    for column in ("teacher", "student", "change"):
        table.add_column(column, justify="right")
    for row in record_rows(record):
        table.add_row(*row)
    return table


def record_rows(record: Mapping[str, Any]) -> list[Row]:
    """(what, teacher, student, change), ready to print."""
    models = [record["models"].get(name) for name in ("teacher", "student")]
    speedup = record.get("speedup") or {}
    rows: list[Row] = []
    for key in ("p50", "p90", "p99"):
        change = _times(speedup.get(key), "faster", "slower")
        rows.append((f"latency {key}", *_each(models, key, _latency), change))
        prefix = "" if key == "p50" else f"{key}_"
        interval = speedup.get(f"{prefix}interval95")
        if interval is not None and (speedup.get(key) or 1) < 1:  # as the line above: times slower
            interval = [1 / interval[1], 1 / interval[0]]
        rows.append(("  95 % interval", *_each(models, key, _interval), _span(interval, "{:.3f}")))
    rows.append(("bound by MLPerf", *_each(models, "", _early), ""))
    loads = _each(
        models, "", lambda model, _: _show((model.get("server") or {}).get("offered_qps"))
    )
    if any(load != _UNKNOWN for load in loads):
        rows.append(("offered load", *loads, ""))
    throughput = speedup.get("throughput")
    rows.append(
        (
            "throughput",
            *_each(
                models, "throughput_per_s", lambda model, key: _show(model.get(key), "{:,.0f}/s")
            ),
            _times(throughput, "more", "less"),
        )
    )
    for key, label in (("total_j", "energy per inference"), ("net_j", "  above idle")):
        teacher_j, student_j = (((model or {}).get("energy") or {}).get(key) for model in models)
        if teacher_j is not None or student_j is not None:
            ratio = teacher_j / student_j if teacher_j and student_j else None
            rows.append(
                (label, _joules(teacher_j), _joules(student_j), _times(ratio, "less", "more"))
            )
    rows.append(("queries", *_each(models, "n", _latency_count), ""))
    return [row for row in rows if set(row[1:]) - {"", _UNKNOWN}]


def record_lines(record: Mapping[str, Any]) -> list[str]:
    """What a reader of the table has to know."""
    lines = [f"invalid: {reason}" for reason in record["invalid_because"]]
    lines += [f"warning: {line}" for line in record["checks"]["warnings"]]
    overhead = record["harness"].get("overhead_us")
    if overhead is not None:
        lines.append(
            f"harness: {overhead:.2f} µs per call beside the call, an empty one measures "
            f"{record['harness']['reported_us']:.2f} µs"
        )
    for name, model in record["models"].items():
        checked = model.get("loadgen")
        if checked:
            verdict = "agree" if checked["agree"] else "DISAGREE"
            lines.append(
                f"loadgen: {name}: p90 {checked['p90_ms']:.4f} ms here, "
                f"{checked['loadgen_p90_ms']:.4f} ms there, of which "
                f"{checked['loadgen_overhead_ms']:.4f} its own; noise {checked['noise_ms']:.4f}: "
                f"they {verdict}"
            )
    if record.get("meter"):
        lines.append(f"energy: by {record['meter'].get('name', 'the meter')}")
    elif record.get("energy_because"):
        lines.append(f"no energy: {record['energy_because']}")
    return lines


def fleet_table(records: Sequence[Mapping[str, Any]], failed: Sequence[str] = ()) -> Table:
    """A line per device, also of those that failed."""
    table = Table(title="all, medians in ms", title_justify="left", box=box.SIMPLE)
    table.add_column("device", overflow="fold")
    for column in ("batch", "teacher", "student", "faster", "95 %", "per s", "mJ"):
        table.add_column(column, justify="right", no_wrap=True)
    table.add_column("", no_wrap=True)
    for record in records:
        speedup = record.get("speedup") or {}
        teacher, student = (record["models"].get(name) or {} for name in ("teacher", "student"))
        energy_j = (student.get("energy") or {}).get("total_j")
        medians = [(model.get("latency_ms") or {}).get("p50") for model in (teacher, student)]
        table.add_row(
            record["device"]["name"],
            str(record["modes"]["batch"]),
            *(_show(median, "{:.4g}") for median in medians),
            _show(speedup.get("p50"), "{:.2f} ×"),
            _span(speedup.get("interval95"), "{:.2f}", between="–"),
            _show(student.get("throughput_per_s"), "{:,.0f}"),
            _UNKNOWN if energy_j is None else f"{1e3 * energy_j:.4g}",
            _STATUS[record["status"]],
        )
    for device in failed:
        table.add_row(device, *[_UNKNOWN] * 7, "failed")
    return table


def comparison_table(compared: Compared) -> Table:
    """The second record against the first."""
    first, second = _distinct(compared.first, compared.second)
    table = Table(
        title=f"{second} (second) against {first} (first)",
        title_justify="left",
        box=box.SIMPLE,
        collapse_padding=True,
        pad_edge=False,
    )
    table.add_column("", no_wrap=True)
    for column in ("first", "second", "change", "95 %"):  # none may be cut off at 80 columns
        table.add_column(column, justify="right", no_wrap=True)
    table.add_column("", no_wrap=True)
    for each in compared.differences:
        number = "{:,.0f}" if each.unit == "/s" else "{:.4g}"
        table.add_row(
            f"{each.model} {each.what}" + (f", {each.unit}" if each.unit else ""),
            number.format(each.first),
            number.format(each.second),
            f"{100 * (each.ratio - 1):+.1f} %",
            _span(_percents(each.interval), "{:+.1f}", " %"),
            _verdict(each),
        )
    return table


def _verdict(each: Difference) -> str:
    if each.differs is None:
        return ""
    if not each.differs:
        return "same"
    better = each.ratio > 1 if each.what.startswith(("throughput", "speedup")) else each.ratio < 1
    return "better" if better else "worse"


def _each(models: Sequence[Mapping[str, Any] | None], key: str, show: Any) -> tuple[str, str]:
    shown = tuple(_UNKNOWN if model is None else show(model, key) for model in models)
    return shown[0], shown[1]


def _latency(model: Mapping[str, Any], key: str) -> str:
    return _milliseconds(model["latency_ms"].get(key))


def _latency_count(model: Mapping[str, Any], key: str) -> str:
    return f"{model['latency_ms'][key]:,}"


def _interval(model: Mapping[str, Any], key: str) -> str:
    return _span(model["latency_ms"].get("intervals95", {}).get(key), "{:.4f}")


def _early(model: Mapping[str, Any], _: str) -> str:
    stopped = model["latency_ms"].get("early_stopping")
    if not stopped:
        return _UNKNOWN
    return f"p{stopped['percentile']:g} ≤ {_milliseconds(stopped['estimate'])}"


def _milliseconds(value: float | None) -> str:
    if value is None:
        return _UNKNOWN
    return f"{value:.4f} ms" if value < 1 else f"{value:.3f} ms"


def _joules(value: float | None) -> str:
    return _UNKNOWN if value is None else f"{1e3 * value:.4g} mJ"


def _show(value: float | None, form: str = "{:,.1f}/s") -> str:
    return _UNKNOWN if value is None else form.format(value)


def _span(
    interval: Sequence[float] | None, form: str, unit: str = "", between: str = " to "
) -> str:
    if interval is None:
        return _UNKNOWN
    return f"{form.format(interval[0])}{between}{form.format(interval[1])}{unit}"


def _percents(interval: tuple[float, float] | None) -> tuple[float, float] | None:
    return None if interval is None else (100 * (interval[0] - 1), 100 * (interval[1] - 1))


def _times(ratio: float | None, better: str, worse: str) -> str:
    if ratio is None or not 0 < ratio < float("inf"):
        return _UNKNOWN
    return f"{ratio:.2f} × {better}" if ratio >= 1 else f"{1 / ratio:.2f} × {worse}"


def _count(number: int, what: str) -> str:
    return f"{number} {what}{'' if number == 1 else 's'}"


def _distinct(first: str, second: str) -> tuple[str, str]:
    """File names alone, where they differ."""
    names = Path(first).name, Path(second).name
    return names if names[0] != names[1] else (first, second)

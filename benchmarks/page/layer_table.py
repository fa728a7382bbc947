"""Layers as a table: channels, weights removed, bits, kernel, and time where it was measured."""

from __future__ import annotations

from typing import Any, Mapping, Sequence

from benchmarks.page import numbers
from benchmarks.page.blocks import Cell, Column, Table
from benchmarks.page.layers import Layer, Product

_ARROW = "\N{RIGHTWARDS ARROW}"


def layer_table(layers: Sequence[Layer], models: Mapping[str, Any]) -> Table:
    """``models`` are a record's, whose ``layers`` give times; empty where nothing was timed."""
    teacher_us, student_us = (_times(models.get(who)) for who in ("teacher", "student"))
    timed = bool(teacher_us or student_us)
    longest = max([*teacher_us.values(), *student_us.values()], default=0.0)
    columns = [
        Column("layer"),
        Column("channels", True),
        Column("weights", True),
        Column("weights removed", True),
        Column("bits", True),
        Column("kernel"),
    ]
    if timed:
        columns += [
            Column("teacher, µs", True),
            Column("student, µs", True),
            Column("faster", True),
        ]
    rows = []
    for layer in layers:
        cells = [Cell(layer.name), *_structure(layer)]
        if timed:
            before = _taken(teacher_us, layer.teacher)
            after = _taken(student_us, layer.student) if layer.student else 0.0
            cells += _pair(before, after, longest, removed=layer.student is None)
        rows.append(cells)
    if timed:
        rows += _others(teacher_us, student_us, models, longest)
        rows.append(_total(models))
    return Table(columns, rows, _caption(layers, timed))


def time_table(models: Mapping[str, Any]) -> Table:
    """Times of a record's layers alone, where the bundle is not at hand."""
    timed = [
        (who, entry, numbers.known(entry, "time_us"))
        for who in ("teacher", "student")
        for entry in _entries(models.get(who))
    ]
    longest = max((time_us or 0.0 for _, _, time_us in timed), default=0.0)
    rows = [
        [
            Cell(who),
            Cell(str(entry.get("name"))),
            Cell(str(entry.get("kernel") or entry.get("op_type") or numbers.UNKNOWN)),
            Cell(numbers.digits(time_us), time_us, bar=_bar(time_us, longest)),
            Cell(numbers.share(numbers.known(entry, "share")), numbers.known(entry, "share")),
        ]
        for who, entry, time_us in timed
    ]
    columns = (Column("model"), Column("layer"), Column("kernel"), Column("µs", True),
               Column("share", True))  # fmt: skip
    return Table(columns, rows, "Of one call, by the runtime's own profiler.")


def _structure(layer: Layer) -> list[Cell]:
    before = layer.teacher
    if layer.student is None:
        return [
            Cell(f"{before.outputs} {_ARROW} 0", 0),
            Cell(f"{numbers.grouped(before.weights)} {_ARROW} 0", 0),
            Cell(numbers.share(1.0, 0), 1.0, bar=100.0),
            Cell(numbers.UNKNOWN, 0),
            Cell("layer removed", "", tone="quiet"),
        ]
    after = layer.student
    bits = " / ".join(
        numbers.UNKNOWN if bits is None else str(bits)
        for bits in (layer.weight_bits, layer.activation_bits)
    )
    kernel = layer.kernel + (f": {layer.reason}" if layer.reason else "")
    return [
        Cell(_change(before.outputs, after.outputs), after.outputs),
        Cell(_change(before.weights, after.weights), after.weights),
        Cell(numbers.share(layer.sparsity, 0), layer.sparsity, bar=100 * max(0.0, layer.sparsity)),
        Cell(bits, layer.weight_bits),
        Cell(kernel or numbers.UNKNOWN, kernel),
    ]


def _change(before: int, after: int) -> str:
    if before == after:
        return numbers.grouped(after)
    return f"{numbers.grouped(before)} {_ARROW} {numbers.grouped(after)}"


def _entries(model: Any) -> list[Mapping[str, Any]]:
    entries = model.get("layers") if isinstance(model, dict) else None
    return [entry for entry in entries or () if isinstance(entry, dict)]


def _times(model: Any) -> dict[str, float]:
    """Microseconds of each kernel, by the node of the file that it was made from."""
    times: dict[str, float] = {}
    for entry in _entries(model):
        time_us = numbers.known(entry, "time_us")
        if time_us is not None:
            name = str(entry.get("name"))
            times[name] = times.get(name, 0.0) + time_us
    return times


def _taken(times: dict[str, float], product: Product) -> float | None:
    """Takes a layer's time out of ``times``, so that what is left belongs to no layer."""
    name = next((name for name in product.aliases if name in times), None)
    return None if name is None else times.pop(name)


def _pair(
    before: float | None, after: float | None, longest: float, *, removed: bool = False
) -> list[Cell]:
    factor = None if removed else numbers.ratio(before, after)
    gone = "removed" if removed else numbers.times(factor, "", "slower").strip()
    slower = factor is not None and factor < 0.9995
    return [
        Cell(numbers.digits(before), before, bar=_bar(before, longest)),
        Cell(numbers.digits(after), after, bar=_bar(after, longest)),
        Cell(gone, 1e9 if removed else factor, tone="bad" if slower else ""),
    ]


def _bar(value: float | None, longest: float) -> float | None:
    return None if value is None or longest <= 0 else 100 * value / longest


def _others(
    teacher_us: Mapping[str, float],
    student_us: Mapping[str, float],
    models: Mapping[str, Any],
    longest: float,
) -> list[list[Cell]]:
    """What has no weights, added up by operator."""
    sums: dict[str, list[float | None]] = {}
    for column, (who, left) in enumerate((("teacher", teacher_us), ("student", student_us))):
        for entry in _entries(models.get(who)):
            name, time_us = str(entry.get("name")), numbers.known(entry, "time_us")
            if name in left and time_us is not None:
                pair = sums.setdefault(str(entry.get("op_type")), [None, None])
                pair[column] = (pair[column] or 0.0) + time_us
    return [
        [Cell(f"all {operator}", tone="quiet"), *[Cell("") for _ in range(5)],
         *_pair(before, after, longest, removed=after is None)]
        for operator, (before, after) in sums.items()
    ]  # fmt: skip


def _total(models: Mapping[str, Any]) -> list[Cell]:
    before, after = (
        sum(_times(models.get(who)).values()) or None for who in ("teacher", "student")
    )
    return [Cell("all layers", "~"), *[Cell("") for _ in range(5)], *_pair(before, after, 0.0)]


def _caption(layers: Sequence[Layer], timed: bool) -> str:
    before = sum(layer.teacher.weights for layer in layers)
    after = sum(layer.student.weights for layer in layers if layer.student)
    gone = sum(layer.student is None for layer in layers)
    text = (
        f"{numbers.share(1 - after / before) if before else numbers.UNKNOWN} of the weights of these "
        f"layers were removed"
    )
    if gone:
        text += f", {gone} of {len(layers)} layers as a whole"
    text += ". Bits are of weights / activations."
    return text + (" Times are of one call, by the runtime's own profiler." if timed else "")

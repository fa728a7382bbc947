"""An explanation of a bundle's time on a terminal, and as JSON: the student, with its teacher beside it."""

from __future__ import annotations

import json
from typing import Any

from rich.console import Console
from rich.markup import escape
from rich.table import Table

from exporters.explain.causes import REMEDIES, Facts
from exporters.explain.explaining import Explained, Explanation

SHOWN = 15
_COLOURS = {
    "float leftover": "red",
    "reformat": "yellow",
    "launch-bound": "magenta",
    "memory-bound": "blue",
    "compute-bound": "green",
}


def as_json(name: str, target: str, student: Explanation, teacher: Explanation | None) -> str:
    record: dict[str, Any] = {
        "bundle": name,
        "target": target,
        "student": student.to_dict(),
        "teacher": None if teacher is None else teacher.to_dict(),
        "remedies": REMEDIES,
    }
    return json.dumps(record, indent=2)


def show(
    name: str,
    target: str,
    student: Explanation,
    teacher: Explanation | None,
    console: Console,
    most: int = SHOWN,
) -> None:
    """The call, its kernels by time, what they have in common, and what was measured against."""
    threads = student.profile.threads
    head = f"{name}, {target}: {_time(student.call_us)} a call"
    head += f", batch {student.batch}, {threads} thread{'s' if threads > 1 else ''}"
    console.print(f"[bold]{escape(head)}[/]", highlight=False, soft_wrap=True)
    if teacher is not None:
        fewer = f", {teacher.macs / student.macs:.2f} × fewer MACs" if student.macs else ""
        ratio = teacher.call_us / student.call_us
        change = f"{ratio:.2f} × faster" if ratio >= 1 else f"{1 / ratio:.2f} × slower"
        console.print(f"teacher {_time(teacher.call_us)}: {change}{fewer}", highlight=False)
    console.print(_kernels(student, teacher, most))
    rest = student.by_time()[most:]
    if rest:
        share = sum(kernel.facts.share for kernel in rest)
        console.print(
            f"and {len(rest)} kernels with {100 * share:.0f} % of the time: --all shows them",
            highlight=False,
        )
    console.print(_causes(student))
    for line in _method(student):
        console.print(escape(line), style="dim", highlight=False, soft_wrap=True)


def _kernels(student: Explanation, teacher: Explanation | None, most: int) -> Table:
    table = Table()
    table.add_column("layer", overflow="fold")
    table.add_column("kernel", overflow="fold")
    table.add_column("µs", justify="right", no_wrap=True)
    table.add_column("%", justify="right", no_wrap=True)
    if teacher is not None:
        table.add_column("teacher", justify="right", no_wrap=True)
    table.add_column("cause", overflow="fold")
    beside = {} if teacher is None else teacher.layer_us()
    told: set[str] = set()
    for kernel in student.by_time()[:most]:
        row = [escape(kernel.layer), _kernel(kernel.facts), f"{kernel.facts.time_us:.1f}"]
        row.append(f"{100 * kernel.facts.share:.0f}")
        if teacher is not None:
            row.append(_beside(kernel, beside, told))
        colour = _COLOURS.get(kernel.cause.kind, "cyan")
        row.append(f"[{colour}]{kernel.cause.kind}[/]: {escape(kernel.cause.why)}")
        table.add_row(*row)
    return table


def _kernel(facts: Facts) -> str:
    """The operator, and what it computes with."""
    return (
        f"{facts.op_type} {'int8' if facts.integer else 'float'}" if facts.macs else facts.op_type
    )


def _beside(kernel: Explained, beside: dict[str, float], told: set[str]) -> str:
    """The teacher's time for the same layer, once; red where it is less."""
    teacher_us = beside.get(kernel.layer)
    if teacher_us is None or kernel.layer in told:
        return ""
    told.add(kernel.layer)
    text = f"{teacher_us:.1f}"
    return f"[red]{text}[/]" if teacher_us < kernel.facts.time_us else text


def _causes(student: Explanation) -> Table:
    table = Table(title="what to try next, most time first", title_justify="left")
    table.add_column("cause", no_wrap=True)
    table.add_column("%", justify="right")
    table.add_column("kernels", justify="right")
    table.add_column("next")
    for kind, share, count in student.by_cause():
        if share >= 0.005:
            colour = _COLOURS.get(kind, "cyan")
            table.add_row(f"[{colour}]{kind}[/]", f"{100 * share:.0f}", str(count), REMEDIES[kind])
    return table


def _method(student: Explanation) -> list[str]:
    machine, profile = student.machine, student.profile
    rates = [rate / 1e9 for _, rate in machine.bandwidth]
    floor = 100 * min(1.0, student.launches_us / student.call_us)
    return [
        f"peak, best of this run: {machine.int8_macs_per_s / 1e9:.0f} GMAC/s int8, "
        f"{machine.float_macs_per_s / 1e9:.0f} float; copies {min(rates):.0f} to {max(rates):.0f} GB/s; "
        f"an empty call {machine.call_us:.1f} µs, the smallest kernel {machine.node_us:.2f}, the smallest "
        f"convolution {machine.int8_conv_us:.2f} int8, {machine.float_conv_us:.2f} float: "
        f"{floor:.0f} % of this call",
        f"{profile.calls} calls with ONNX Runtime's profiler and as many without; it adds "
        f"{max(profile.profiler_us, 0):.0f} µs to a call, {profile.stamp_us:.1f} of them inside each "
        "kernel's time, which were taken off",
    ]


def _time(us: float) -> str:
    return f"{us / 1000:.3g} ms" if us >= 1000 else f"{us:.1f} µs"

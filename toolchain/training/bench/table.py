"""The bench's results as tables: throughput of each way, and what a step costs beside another's."""

from __future__ import annotations

import statistics
from collections.abc import Iterator, Sequence

from toolchain.training.bench.measuring import Mode

HEAD = ("", "images/s", "min to max", "ratio to plain", "min to max")
COST_HEAD = ("a step of", "in steps of", "times", "min to max", "asked for")


def rows(modes: Sequence[Mode]) -> list[tuple[str, ...]]:
    """Medians and ranges over the rounds, ready to print."""
    return [
        (
            mode.name,
            f"{statistics.median(mode.images_per_s):,.0f}",
            f"{min(mode.images_per_s):,.0f} to {max(mode.images_per_s):,.0f}",
            f"{statistics.median(mode.ratios):.2f}",
            f"{min(mode.ratios):.2f} to {max(mode.ratios):.2f}",
        )
        for mode in modes
    ]


def cost_rows(modes: Sequence[Mode]) -> list[tuple[str, ...]]:
    """Of the ways that follow a teacher: a step's time, in steps of what it adds something to."""
    return [
        (
            mode.name,
            mode.against,
            f"{statistics.median(mode.times):.2f}",
            f"{min(mode.times):.2f} to {max(mode.times):.2f}",
            _asked(mode),
        )
        for mode in modes
        if mode.taught
    ]


def _asked(mode: Mode) -> str:
    if mode.at_most is None:
        return ""
    met = statistics.median(mode.times) <= mode.at_most
    return f"at most {mode.at_most:g}: {'met' if met else 'MISSED'}"


def tables(modes: Sequence[Mode]) -> list[list[tuple[str, ...]]]:
    """Each with its head."""
    costs = cost_rows(modes)
    return [[HEAD, *rows(modes)], *([[COST_HEAD, *costs]] if costs else [])]


def printed(table: Sequence[Sequence[str]]) -> Iterator[str]:
    """Lines for a terminal."""
    widths = [max(len(line[column]) for line in table) for column in range(len(table[0]))]
    words = _words(table[0])
    for line in table:
        cells = [
            f"{cell:<{width}}" if column < words else f"{cell:>{width}}"
            for column, (cell, width) in enumerate(zip(line, widths, strict=True))
        ]
        yield "  ".join(cells).rstrip()


def _words(head: Sequence[str]) -> int:
    """How many columns hold words and are aligned as such."""
    return 2 if head == COST_HEAD else 1


def markdown(modes: Sequence[Mode], about: dict[str, str], command: str) -> str:
    """The page for ``--out FILE.md``."""
    lines = [*(f"- {key}: {value}" for key, value in about.items()), f"- written by: `{command}`"]
    parts = ["# Training throughput", "\n".join(lines)]
    for head, *body in tables(modes):
        words = _words(head)
        rule = ("---",) * words + ("---:",) * (len(head) - words)
        parts.append("\n".join(f"| {' | '.join(line)} |" for line in (head, rule, *body)))
    return "\n\n".join(parts) + "\n"

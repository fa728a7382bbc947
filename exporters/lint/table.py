"""Findings as a table for people: grouped by rule, worst first, each remedy once."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from exporters.lint.finding import LEVELS, Finding, Level
from exporters.lint.registry import Rule, rules
from exporters.lint.target import LintTarget

if TYPE_CHECKING:
    from rich.console import Console, RenderableType

_COLOURS: dict[Level, str] = {"error": "bold red", "warning": "yellow", "note": "cyan"}
# Nodes that are written out for a rule; the rest is counted.
_SHOWN = 3


def grouped(findings: Sequence[Finding]) -> list[list[Finding]]:
    """Findings of one rule, level and remedy together, in the order of their first."""
    groups: dict[tuple[str, str, str], list[Finding]] = {}
    for finding in findings:
        groups.setdefault((finding.rule, finding.level, finding.remedy), []).append(finding)
    return list(groups.values())


def counted(findings: Sequence[Finding]) -> str:
    """``2 errors, 1 warning, no notes``."""
    numbers = [sum(finding.level == level for finding in findings) for level in LEVELS]
    words = [
        f"{number or 'no'} {level}{'' if number == 1 else 's'}"
        for level, number in zip(LEVELS, numbers, strict=True)
    ]
    return ", ".join(words)


def print_findings(
    console: Console,
    findings: Sequence[Finding],
    *,
    name: str,
    target: LintTarget,
    nodes: int,
    every_node: bool = False,
) -> None:
    """The table and a line that sums it up."""
    from rich.markup import escape
    from rich.table import Table

    if findings:
        table = Table(title=f"{escape(name)} for {target}", title_justify="left", show_lines=True)
        table.add_column("", no_wrap=True)
        table.add_column("rule", no_wrap=True)
        table.add_column("nodes", justify="right")
        table.add_column("what, where, and what to do", overflow="fold")
        for group in grouped(findings):
            first = group[0]
            colour = _COLOURS[first.level]
            table.add_row(
                f"[{colour}]{first.level}[/]",
                f"[{colour}]{first.rule}[/]",
                str(len(group)),
                _cell(group, every_node),
            )
        console.print(table)
    refused = any(finding.refused_by_importer for finding in findings)
    verdict = (
        f"{escape(name)}: {counted(findings)} for {target}, {len(rules())} rules, {nodes} nodes"
    )
    if refused:
        verdict += "; NVIDIA's importer would refuse it"
    console.print(verdict, highlight=False)
    if findings:
        console.print(
            "compress-deploy lint --explain RULE says why and how it is known", style="dim"
        )


def _cell(group: Sequence[Finding], every_node: bool) -> RenderableType:
    from rich.text import Text

    text = Text(f"{rules()[group[0].rule].title}\n")
    shown = group if every_node else group[:_SHOWN]
    for finding in shown:
        text.append(f"{finding.node}: " if finding.node else "", "bold")
        text.append(f"{finding.message}\n")
    if len(group) > len(shown):
        text.append(f"and {len(group) - len(shown)} more (--all shows them)\n", "dim")
    text.append(f"→ {group[0].remedy}", "green")
    return text


def print_rules(console: Console) -> None:
    """Every rule with its level for each target."""
    from rich.table import Table

    table = Table(title="rules of compress-deploy lint", title_justify="left")
    table.add_column("rule", no_wrap=True)
    table.add_column("tensorrt")
    table.add_column("ort-cpu")
    table.add_column("what")
    for rule in rules().values():
        levels = [rule.levels.get(target) for target in ("tensorrt", "ort-cpu")]
        table.add_row(
            rule.id,
            *(f"[{_COLOURS[level]}]{level}[/]" if level else "" for level in levels),
            rule.title,
        )
    console.print(table)


def print_rule(console: Console, rule: Rule) -> None:
    """One rule in full."""
    levels = ", ".join(f"{level} for {target}" for target, level in rule.levels.items())
    console.print(f"[bold]{rule.id}[/]: {rule.title}", highlight=False)
    console.print(levels, style="dim", highlight=False)
    console.print()
    console.print(rule.explanation, highlight=False, markup=False)
    console.print()
    console.print(f"→ {rule.remedy}", style="green", highlight=False, markup=False)

"""A proof as tables on a terminal, and as JSON."""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from typing import Any

from rich.console import Console
from rich.markup import escape
from rich.table import Table

from exporters.proof.ladder import Hop, Stand
from toolchain.proof.blaming import Blame
from toolchain.proof.proving import Proof

SHOWN = 5
_OK, _FAILED = "[green]ok[/]", "[red bold]FAILED[/]"
# What quantization without training costs is a number to read.
_NOT_JUDGED = "[yellow]not judged[/]"


def show(name: str, proofs: Sequence[Proof], console: Console) -> None:
    """Every proof: its ladder, the other evidence, and who is blamed."""
    for proof in proofs:
        console.print(_ladder(name, proof))
        for hop in proof.ladder.hops:
            if hop.check is None:
                _line(console, hop.below, f"not made: {hop.skipped}", "[yellow]skipped[/]")
        _evidence(proof, console)
        for note in proof.notes:
            _line(console, "rounding", note, "[yellow]allowed[/]")
        if proof.blame is not None and (proof.blame.layers or proof.ladder.failed is not None):
            console.print(_blame(proof.blame))
            for note in proof.blame.notes:
                console.print(f"  {escape(note)}", highlight=False, soft_wrap=True)
        if proof:
            console.print(f"[green]proved[/]  {proof.target}\n", highlight=False)
        for failure in proof.failures:
            console.print(
                f"[red bold]failed[/]  {proof.target}: {escape(failure)}\n",
                highlight=False,
                soft_wrap=True,
            )


def as_json(proved: Sequence[tuple[str, Sequence[Proof]]]) -> str:
    """For tools: an object for one bundle, a list for several; what is not a finite number is null."""
    records = [
        {
            "bundle": name,
            "passed": all(proofs),
            "targets": [proof.to_dict() for proof in proofs],
        }
        for name, proofs in proved
    ]
    return json.dumps(_finite(records[0] if len(records) == 1 else records), indent=2)


def _finite(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _finite(each) for key, each in value.items()}
    if isinstance(value, list | tuple):
        return [_finite(each) for each in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def _ladder(name: str, proof: Proof) -> Table:
    ladder = proof.ladder
    rows = f"{ladder.rows:,} rows of {ladder.source}"
    table = Table(title=f"{name}, {proof.target}: {rows}", title_justify="left")
    table.add_column("hop", no_wrap=True)
    for column in ("batch", "agree", "top-1 %", "max |Δ|"):
        table.add_column(column, justify="right", no_wrap=True)
    table.add_column("", no_wrap=True)
    stands = {stand.name: stand for stand in ladder.stands}
    for hop in ladder.hops:
        if hop.check is not None:
            table.add_row(*_hop(hop, stands))
    return table


def _hop(hop: Hop, stands: dict[str, Stand]) -> list[str]:
    check = hop.check
    assert check is not None
    above = "itself" if hop.above == hop.below else hop.above
    top1 = "-"
    if stands[hop.below].top1 is not None:
        one, two = check.reference_correct, check.exported_correct
        top1 = f"{100 * one / check.rows:.2f} → {100 * two / check.rows:.2f}"
    return [
        f"{above} → {hop.below}",
        str(hop.batch),
        f"{check.agreeing}/{check.rows}",
        top1,
        f"{check.max_abs:.2g}",
        (_NOT_JUDGED if check.allowed.decisions == 0 else _OK) if check else _FAILED,
    ]


def _evidence(proof: Proof, console: Console) -> None:
    stands = proof.ladder.stands
    if len(stands) > 1:
        said = f"{stands[-1].same:,} of {stands[-1].rows:,} rows answered as by {stands[0].name}, to 1e-5"
        _line(console, "answers", said, "")
    if proof.kernels is not None and proof.int8:
        report = proof.kernels
        left = f", {len(report.float)} in float" if report.float else ""
        said = f"{len(report.integer)} layers with weights on integer kernels{left}"
        _line(
            console,
            "kernels",
            said,
            _FAILED if proof.float_convolutions or not report.integer else _OK,
        )
        for note in report.notes():
            _line(console, "", note, "")
    if proof.changed is None:
        _line(console, "file", f"not compared: {proof.not_compared}", "[yellow]skipped[/]")
    elif proof.changed:
        said = f"{len(proof.changed)} differences from {proof.expected}"
        if proof.other_version:
            said += f" with this version; {proof.other_version} wrote it, and the ladder decides"
        _line(console, "file", said, "[yellow]differs[/]" if proof.other_version else _FAILED)
    else:
        _line(console, "file", f"holds {proof.expected}", _OK)
    if proof.recorded is not None:
        check = proof.recorded
        said = f"{check.agreeing} of {check.rows} decided as recorded, max |Δ| {check.max_abs:.2g}"
        _line(console, "samples", said, _OK if check else _FAILED)


def _line(console: Console, name: str, said: str, verdict: str) -> None:
    text = f"  {name:<10}{escape(said)}  {verdict}".rstrip()
    console.print(text, highlight=False, soft_wrap=True)


def _blame(found: Blame) -> Table:
    table = Table(title=f"who is to blame: {found.hop}", title_justify="left")
    table.add_column("layer", overflow="fold")
    table.add_column("evidence")
    table.add_column("what", overflow="fold")
    for change in found.changed[:SHOWN]:
        table.add_row(escape(change.layer), f"file: {change.kind}", escape(change.what))
    for parting in found.parted[:SHOWN]:
        said = f"{parting.snr_db:.0f} dB signal to noise, {parting.lost_db:.0f} dB lost here"
        table.add_row(escape(parting.layer), "values part", said)
    for cost in [each for each in found.costs if each.regained > 0 or each.gained_db > 1][:SHOWN]:
        said = f"alone in float: {100 * cost.regained:+.2f} points of decisions"
        if cost.top1_points is not None:
            said += f", {cost.top1_points:+.2f} of top-1"
        table.add_row(escape(cost.layer), "cost", f"{said}, {cost.gained_db:+.1f} dB")
    if not table.row_count:
        said = "no single layer stands out: what is lost is spread over many"
        table.add_row("-", "all", said)
    return table

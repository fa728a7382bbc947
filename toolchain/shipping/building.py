"""Building an engine as a person sees it: a bar on the way, and the table of precisions."""

from __future__ import annotations

import json
import sys
from collections.abc import Mapping
from pathlib import Path

from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn
from rich.table import Table

from deploy.bundle import Bundle
from deploy.engines.build import BuiltEngine
from deploy.engines.bundled import add_engine
from deploy.engines.precision import PrecisionSummary
from deploy.engines.settings import BuildSettings

SHOWN_NAMES = 6


def build_into(folder: Path, model: str, settings: BuildSettings, *, as_json: bool) -> int:
    """Build a bundle's model, store the engine, print what it computes with; the exit status."""
    bundle = Bundle.open(folder)
    columns = (
        TextColumn("{task.description}", markup=False),
        BarColumn(),
        TimeElapsedColumn(),
        TextColumn("ETA"),
        TimeRemainingColumn(),
    )
    with Progress(
        *columns, console=Console(stderr=True), transient=True, disable=not sys.stderr.isatty()
    ) as bar:
        task = bar.add_task(f"building {model}", total=1.0)
        _, built = add_engine(
            bundle, model, settings, lambda phase, share: bar.update(task, completed=share)
        )
    if as_json:
        shown = {key: value for key, value in built.about.items() if key != "layers"}
        print(json.dumps({"file": str(built.plan), "loaded": built.loaded, **shown}, indent=2))
    else:
        print_engine(built, Console(highlight=False, soft_wrap=True))
    return 0


def print_engine(built: BuiltEngine, console: Console) -> None:
    """The precisions of an engine's layers, and how far they are proved."""
    about, precision = built.about, built.precision
    if precision.layers:
        console.print(_table(precision))
    asked = about["settings"]["precision"]
    for kind, layers in (
        ("convolutions", precision.convolutions),
        ("matrix products", precision.products),
    ):
        if layers:
            console.print(f"{kind}  {_in_words(layers, asked)}", markup=False)
    if precision.reformats:
        console.print(f"reformats  {len(precision.reformats)} layers only move or convert data")
    for name, profiles in about["profiles"].items():
        console.print(f"input {name}  {'; '.join(map(_range, profiles))}", markup=False)
    for warning in about["warnings"][:SHOWN_NAMES]:
        console.print(f"warning  {warning}", markup=False)
    size_bytes, typing = about["plan"]["size_bytes"], about["typing"]
    console.print(
        f"engine  {built.plan}  {size_bytes:,} bytes, built in {about['build_s']:.1f} s by "
        f"{built.runtime}, {typing}ly typed",
        markup=False,
    )
    console.print(_proof(built), markup=False)


def _table(precision: PrecisionSummary) -> Table:
    table = Table("computes from", title="layers of the engine", title_justify="left")
    table.add_column("layers", justify="right")
    table.add_column("share", justify="right")
    for name, count in sorted(precision.by_precision.items(), key=lambda item: -item[1]):
        table.add_row(name, str(count), f"{precision.share(name):.1%}")
    return table


def _in_words(layers: Mapping[str, str], asked: str) -> str:
    """How many layers compute in the type that was asked for, and which in another."""
    others = [f"{name} ({kind or 'unknown'})" for name, kind in layers.items() if kind != asked]
    said = f"{len(layers) - len(others)} of {len(layers)} on {asked}"
    if not others:
        return said
    more = f" and {len(others) - SHOWN_NAMES} more" if len(others) > SHOWN_NAMES else ""
    return f"{said}; not {', '.join(others[:SHOWN_NAMES])}{more}"


def _range(shapes: list[list[int]]) -> str:
    low, best, high = (tuple(shape) for shape in shapes)
    return f"{low}" if low == high else f"{low} to {high}, best at {best}"


def _proof(built: BuiltEngine) -> str:
    if built.loaded:
        gpu = built.about["gpu"]
        return (
            f"proof  loaded on {gpu['name']} (SM {gpu['compute_capability']}) and inspected there"
        )
    if built.about["driver"] is None:
        return (
            f"proof  {built.precision.source} only: this machine has no NVIDIA driver, so the "
            "engine was built but neither loaded nor executed"
        )
    return f"proof  {built.precision.source} only: the engine does not load on this machine"

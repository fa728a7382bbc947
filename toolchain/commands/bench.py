"""``compress-deploy bench``: how fast a bundle is, here or on devices."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from toolchain.commands.options import BundlePath, numbers, words


def bench(
    bundle: BundlePath,
    device: Annotated[
        str | None,
        typer.Option(
            metavar="NAME|ssh://USER@HOST",
            help="Where: a device that `device add` knows, or its address; several, separated by "
            "commas, run side by side. Without it, here.",
            show_default=False,
        ),
    ] = None,
    scenario: Annotated[
        str,
        typer.Option(help="What a query is: single-stream, multi-stream, offline or server."),
    ] = "single-stream",
    profile: Annotated[
        str,
        typer.Option(help="How long: quick (2 s a model), standard (10 s), mlperf (10 minutes)."),
    ] = "standard",
    provider: Annotated[
        str,
        typer.Option(help="ort-cpu, ort-cuda, ort-tensorrt, tensorrt or tensorrt-rtx."),
    ] = "ort-cpu",
    target: Annotated[
        str | None,
        typer.Option(help="The student lowered for it.", show_default="the provider's own"),
    ] = None,
    models: Annotated[str, typer.Option(help="Which networks.")] = "teacher,student",
    threads: Annotated[int, typer.Option(help="CPU threads inside an operator.")] = 1,
    affinity: Annotated[
        str | None,
        typer.Option(metavar="N,M", help="A processor for each thread.", show_default=False),
    ] = None,
    batch: Annotated[
        str | None,
        typer.Option(
            metavar="N,M",
            help="Samples per query; several give a record each.",
            show_default="1; multi-stream 8, offline 32",
        ),
    ] = None,
    power: Annotated[
        bool, typer.Option("--power/--no-power", help="Measure energy; needs a sensor.")
    ] = False,
    meter: Annotated[
        str | None,
        typer.Option(help="The sensor: ina, tegrastats, nvml, rapl.", show_default="what fits"),
    ] = None,
    rails: Annotated[
        str | None,
        typer.Option(
            metavar="NAME,NAME",
            help="Rails whose sum is the total, on a board that is not known.",
            show_default=False,
        ),
    ] = None,
    copies: Annotated[
        bool, typer.Option("--copies/--no-copies", help="Time copies to and from a GPU.")
    ] = True,
    cuda_graph: Annotated[
        bool, typer.Option("--cuda-graph/--no-cuda-graph", help="Replay a captured graph.")
    ] = False,
    spin: Annotated[
        bool, typer.Option("--spin/--no-spin", help="Threads wait in a loop instead of asleep.")
    ] = True,
    layers: Annotated[
        bool, typer.Option("--layers/--no-layers", help="Also time every layer.")
    ] = True,
    loadgen: Annotated[
        bool, typer.Option("--loadgen", help="Let MLPerf's LoadGen measure the same and compare.")
    ] = False,
    target_qps: Annotated[
        float | None,
        typer.Option(help="server: queries per second to offer.", show_default=False),
    ] = None,
    bound_ms: Annotated[
        float | None,
        typer.Option(
            help="server: search the highest load whose p99 stays within this.",
            show_default=False,
        ),
    ] = None,
    duration: Annotated[
        float | None,
        typer.Option(metavar="S", help="Seconds per model.", show_default="the profile's"),
    ] = None,
    queries: Annotated[
        int | None,
        typer.Option(metavar="N", help="Fewest queries per model.", show_default="the profile's"),
    ] = None,
    seed: Annotated[int, typer.Option(help="Of random arrivals.")] = 0,
    out: Annotated[
        Path | None,
        typer.Option(
            metavar="FILE.json",
            help="Where the record goes.",
            show_default="records/BUNDLE-SCENARIO-TIME.json",
        ),
    ] = None,
    as_json: Annotated[
        bool, typer.Option("--json", help="The record on standard output instead of a table.")
    ] = False,
) -> None:
    """Measure teacher and student of a bundle, in turns, and write a record.

    Checks first that the models answer as the bundle says. Prints percentiles with intervals of
    95 %, throughput and, with --power, energy per inference. Exit status 1 when the machine
    throttled: such a record is marked invalid and never compared. Interrupted, what was measured
    until then is written, marked partial.
    """
    from toolchain.measuring.benching import bench_everywhere

    requests = [
        {
            "scenario": scenario,
            "profile": profile,
            "provider": provider,
            "target": target,
            "models": words(models),
            "threads": threads,
            "affinity": numbers("affinity", affinity),
            "batch": size,
            "power": power,
            "meter": meter,
            "rails": words(rails),
            "copies": copies,
            "cuda_graph": cuda_graph,
            "spin": spin,
            "layers": layers,
            "loadgen": loadgen,
            "target_qps": target_qps,
            "bound_ms": bound_ms,
            "duration_s": duration,
            "queries": queries,
            "seed": seed,
        }
        for size in numbers("batch", batch) or (None,)
    ]
    raise typer.Exit(bench_everywhere(bundle, requests, words(device), out, as_json=as_json))

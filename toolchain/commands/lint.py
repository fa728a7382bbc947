"""``compress-deploy lint``: what a target refuses, silently changes or does not fuse in an ONNX graph."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from deploy.errors import ConfigError


def lint(
    model: Annotated[
        Path | None,
        typer.Argument(
            metavar="MODEL.onnx", help="Any ONNX file, ours or not.", show_default=False
        ),
    ] = None,
    target: Annotated[
        str, typer.Option(metavar="TARGET", help="tensorrt, tensorrt-fp16 or ort-cpu.")
    ] = "tensorrt",
    tensorrt: Annotated[
        str,
        typer.Option(metavar="VERSION", help="Version of TensorRT, e.g. 8.6, 10.3, 10.13, 11.4."),
    ] = "11",
    dla: Annotated[
        bool, typer.Option("--dla", help="Also what a Deep Learning Accelerator does not take.")
    ] = False,
    as_json: Annotated[bool, typer.Option("--json", help="JSON instead of a table.")] = False,
    every_node: Annotated[
        bool, typer.Option("--all", help="Write out every node, not the first few of a rule.")
    ] = False,
    explain: Annotated[
        str | None,
        typer.Option(metavar="RULE", help="Explain one rule and end.", show_default=False),
    ] = None,
    list_rules: Annotated[bool, typer.Option("--rules", help="List all rules and end.")] = False,
) -> None:
    """Find what a target refuses, silently changes or does not fuse in an ONNX graph.

    Works on any ONNX file and runs nothing. Each finding says where, what and what to do; an error is
    a graph that the target refuses or computes otherwise. Exit status 1 when there is one.
    """
    import json

    from rich.console import Console

    from exporters.lint import linting, registry, table
    from exporters.lint.target import LintTarget

    console = Console()
    if list_rules:
        table.print_rules(console)
        return
    if explain is not None:
        table.print_rule(console, registry.find_rule(explain))
        return
    if model is None:
        raise ConfigError("lint: no model was given; give the path of an .onnx file, or --rules")
    wanted = LintTarget.parse(target, tensorrt, dla)
    view = linting.read(model)
    findings = linting.check(view, wanted)
    if as_json:
        record = {
            "model": str(model),
            "target": wanted.runtime,
            "tensorrt": tensorrt if wanted.is_tensorrt else None,
            "dla": dla,
            "findings": [finding.to_dict() for finding in findings],
        }
        print(json.dumps(record, indent=2))
    else:
        table.print_findings(
            console,
            findings,
            name=model.name,
            target=wanted,
            nodes=len(view.nodes),
            every_node=every_node,
        )
    raise typer.Exit(int(linting.has_errors(findings)))

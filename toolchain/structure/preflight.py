"""What ``compress-deploy plan`` shows before any hours are spent: what can be cut, and what will be."""

from __future__ import annotations

import json
from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from deploy.errors import StructureError
from toolchain.data.batches import evaluation_batches
from toolchain.data.loading import load_data
from toolchain.distillation.preflight import Preflight
from toolchain.stages import NewStudent
from toolchain.starting import build_network, logits_width
from toolchain.structure.allocation import Allocation
from toolchain.structure.cost import Cost, measure
from toolchain.structure.decision import Findings, examine, goal_of, of_what_is_left
from toolchain.structure.plan import Group

if TYPE_CHECKING:
    from rich.console import Console

    from toolchain.recipe.network import NetworkOrigin
    from toolchain.recipe.schema import ModelConfig, Recipe

SAMPLES = 1024


def plan_recipe(recipe: Recipe, as_json: bool, *, cache: Path = Path("runs")) -> int:
    """Print what the recipe's structure and goals would do to its model.

    Returns:
        The exit status: 0, or 1 when a goal is out of reach.

    Raises:
        ConfigError: As ``Preflight.check``: a stage of the recipe could only fail.
        DataError: As ``logits_width``: the network does not take the data's images, or gives no logits.
    """
    from rich.console import Console

    if recipe.threads is not None:
        torch.set_num_threads(recipe.threads)
    data = load_data(recipe.data)
    Preflight(lambda _: data).check(recipe)
    origin = _pruned(recipe)
    other = origin is not recipe.model
    where = "student" if other else "model"
    network = build_network(origin, where, recipe.seed)
    logits_width(network, data.input_shape, where)
    teacher = None
    if other:
        teacher = measure(build_network(recipe.model, "model", recipe.seed), data.input_shape)

    def batches() -> Iterable[tuple[Tensor, Tensor]]:
        generator = torch.Generator().manual_seed(recipe.seed)
        part = data.train.part(torch.randperm(len(data.train), generator=generator)[:SAMPLES])
        return evaluation_batches(part, data.preprocess, 128)

    notes = Console(stderr=True)
    findings = examine(
        network,
        data.input_shape,
        recipe,
        batches=batches,
        cache=cache,
        say=lambda text: notes.print(text, highlight=False),
    )
    record = plan_record(findings, recipe, teacher)
    if as_json:
        print(json.dumps(record, indent=2))
    else:
        console = Console()
        if not console.is_terminal:
            console = Console(width=200, no_color=True, highlight=False)
        _show(record, console)
    return 1 if record["out_of_reach"] else 0


def _pruned(recipe: Recipe) -> ModelConfig | NetworkOrigin:
    """Where the network comes from that the first pruning stage meets: the teacher, or a new student."""
    origin: ModelConfig | NetworkOrigin = recipe.model
    for stage in recipe.stages:
        if stage.stage.endswith("prune"):
            break
        if isinstance(stage, NewStudent):
            origin = stage
    return origin


def plan_record(findings: Findings, recipe: Recipe, teacher: Cost | None = None) -> dict[str, Any]:
    """The plan as plain data: groups, branches, costs before and after, and what is out of reach.

    ``teacher`` is what the goals refer to, where the network is not the teacher's.
    """
    structure = recipe.structure
    model = findings.cost_model
    least = findings.smallest(structure)
    goal = goal_of(structure, recipe.goals)
    if teacher is not None:
        goal = of_what_is_left(goal, teacher, model.cost)
    allocation: Allocation | None = None
    problem: str | None = None
    prunes = any(stage.stage.endswith("prune") for stage in recipe.stages)
    if teacher is not None and not prunes:
        problem = _too_large(goal)
    elif goal or structure.channels or structure.drop:
        try:
            allocation = findings.allocate(structure, goal)
        except StructureError as error:
            problem = str(error)
    groups = [_group_record(findings, group, allocation) for group in findings.groups]
    removed = {branch.name for branch in allocation.removed} if allocation is not None else set()
    return {
        "groups": groups,
        "branches": [
            {
                "name": branch.name,
                "modules": list(branch.modules),
                "reason": branch.reason,
                "contribution": findings.contributions.get(branch.name),
                "removed": branch.name in removed,
            }
            for branch in findings.branches
        ],
        "goals": goal,
        "teacher": teacher and {"macs": teacher.macs, "parameters": teacher.parameters},
        "network": _costs(findings, None),
        "planned": None if allocation is None else _costs(findings, allocation),
        "smallest": {
            "macs": model.macs(least.widths, least.removed),
            "macs_share": model.share("macs", least.widths, least.removed),
            "parameters": model.parameters(least.widths, least.removed),
        },
        "out_of_reach": problem,
    }


def _too_large(goal: dict[str, float]) -> str | None:
    """Why a new student that no stage prunes misses the goals: shares of it that may stay."""
    missed = [f"{name}: {share:.1%} of the student" for name, share in goal.items() if share < 1]
    if not missed:
        return None
    return (
        f"goals: they leave {', '.join(missed)}, and no stage prunes it; accepted is a student within the "
        "goals; make it smaller, or put prune and slim behind it"
    )


def _group_record(
    findings: Findings, group: Group, allocation: Allocation | None
) -> dict[str, Any]:
    model = findings.cost_model
    modules = model.modules_of(group)
    macs = model.of("macs", {}, (), modules) / max(1, model.macs({}))
    parameters = model.of("parameters", {}, (), modules) / max(1, model.parameters({}))
    kept: int | None = None
    if allocation is not None and group.reason is None:
        kept = len(allocation.kept.get(group.name, ()))  # none: inside a branch that goes
    return {
        "name": group.name,
        "channels": group.channels,
        "kept": kept,
        "macs_share": macs,
        "parameters_share": parameters,
        "modules": list(modules),
        "can_be_cut": group.reason is None,
        "reason": group.reason,
    }


def _costs(findings: Findings, allocation: Allocation | None) -> dict[str, float]:
    model = findings.cost_model
    widths, removed = ({}, ()) if allocation is None else (allocation.widths, allocation.removed)
    costs: dict[str, float] = {
        "macs": model.macs(widths, removed),
        "macs_share": model.share("macs", widths, removed),
        "parameters": model.parameters(widths, removed),
        "parameters_share": model.share("parameters", widths, removed),
    }
    if model.latency is not None:
        costs["latency_us"] = model.of("latency", widths, removed)
        costs["latency_share"] = model.share("latency", widths, removed)
    return costs


def _show(record: dict[str, Any], console: Console) -> None:
    from rich.table import Table

    def table(**columns: str) -> Table:
        shown = Table(box=None, pad_edge=False, header_style="bold")
        for name, side in columns.items():
            shown.add_column(name.replace("_", " "), justify=side, overflow="fold")  # type: ignore[arg-type]
        return shown

    groups = table(
        group="left",
        channels="right",
        planned="right",
        MACs_touched="right",
        parameters_touched="right",
        can_it_be_cut="left",
    )
    for group in record["groups"]:
        groups.add_row(
            group["name"],
            str(group["channels"]),
            _planned(group),
            f"{group['macs_share']:.1%}",
            f"{group['parameters_share']:.1%}",
            "yes" if group["can_be_cut"] else f"no: {group['reason']}",
        )
    console.print(groups)
    if record["branches"]:
        branches = table(
            branch="left",
            layers="right",
            share_of_sum="right",
            planned="left",
            can_it_be_removed="left",
        )
        for branch in record["branches"]:
            share = branch["contribution"]
            branches.add_row(
                branch["name"],
                str(len(branch["modules"])),
                "" if share is None else f"{share:.2f}",
                "removed" if branch["removed"] else "",
                "yes" if branch["reason"] is None else f"no: {branch['reason']}",
            )
        console.print()
        console.print(branches)
    costs = table(network="left", MACs="right", parameters="right", time_of_layers="right")
    whole = record["teacher"] or record["network"]
    for name, cost in (
        ("teacher", record["teacher"]),
        ("student" if record["teacher"] else "now", record["network"]),
        ("planned", record["planned"]),
        ("smallest", record["smallest"]),
    ):
        if cost is not None:
            time = (
                f"{cost['latency_us'] / 1000:.3f} ms, {cost['latency_share']:.1%} of float"
                if "latency_us" in cost
                else ""
            )
            costs.add_row(
                name,
                f"{cost['macs']:,} ({cost['macs'] / max(1, whole['macs']):.1%})",
                f"{cost['parameters']:,}",
                time,
            )
    console.print()
    console.print(costs)
    if record["out_of_reach"]:
        console.print(record["out_of_reach"], style="bold red", soft_wrap=True)
    elif record["planned"] is None and not record["teacher"]:
        console.print(
            "no goal says how small the network has to be; set goals.macs", soft_wrap=True
        )


def _planned(group: dict[str, Any]) -> str:
    if group["kept"] is None or group["kept"] == group["channels"]:
        return ""
    return str(group["kept"]) if group["kept"] else "gone"

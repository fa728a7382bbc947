"""The engines of a bundle as rungs of the parity ladder, or why there is none."""

from __future__ import annotations

from functools import partial

from deploy.bundle import Bundle
from deploy.engines.bindings import MODULES
from deploy.engines.choosing import engine_names
from deploy.engines.plan_file import PlanFile, open_plan
from deploy.sessions.engine import EngineSession
from exporters.proof.ladder import ENGINE, INTEGER_KERNELS, Rung


def engine_rungs(bundle: Bundle, target: str) -> list[Rung]:
    """A rung for each engine that was built from the target's file, at its profiles' batches.

    Raises:
        StorageError, DeviceError: A plan's side file is missing or cannot be read.
    """
    if target == "ort-cpu":
        return []
    source = bundle.manifest["targets"][target]["file"]
    sha256 = bundle.manifest["files"][source]["sha256"]
    plans = {name: open_plan(bundle.folder / name) for name in engine_names(bundle)}
    found = {name: plan for name, plan in plans.items() if plan.about["onnx"]["sha256"] == sha256}
    if not found:
        reason = (
            f"the bundle has no engine built from {source}; build one where it will run, with: "
            "compress-deploy build BUNDLE"
        )
        return [Rung(ENGINE, "TensorRT", None, absent=reason)]
    return [
        Rung(
            ENGINE if len(found) == 1 else name,
            f"{MODULES[plan.runtime]} {plan.about['runtime']['version']}, {name}",
            partial(EngineSession, plan.path),
            INTEGER_KERNELS,
            _batches(plan),
            least=min(_batches(plan)),
            optional=True,
        )
        for name, plan in found.items()
    ]


def _batches(plan: PlanFile) -> tuple[int, ...]:
    """min, opt and max of every profile; a plan without one has a fixed batch."""
    profiles = plan.about.get("profiles") or {}
    return tuple(
        sorted({shape[0] for ends in profiles.values() for shapes in ends for shape in shapes})
    ) or (1,)

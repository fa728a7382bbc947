"""Engines in a bundle: built from one of its models, and kept beside it."""

from __future__ import annotations

import tempfile
from dataclasses import replace
from pathlib import Path

from deploy.bundle import Bundle, add_files
from deploy.engines.build import BuiltEngine, build_engine
from deploy.engines.settings import BuildSettings
from deploy.engines.worker import Progress
from deploy.errors import DataError

FOLDER = "engines"
TEACHER = "teacher"
TEACHER_FILE = "teacher.onnx"


def add_engine(
    bundle: Bundle,
    model: str,
    settings: BuildSettings | None = None,
    progress: Progress | None = None,
) -> tuple[Bundle, BuiltEngine]:
    """Build the model of a target (or ``teacher``) on this machine and add it to the bundle.

    The plan becomes ``engines/<model>.<runtime>[.<gpu>].plan``, its side file lies beside it; a
    plan of the same name is replaced.  The teacher has no integer layers, so none are asked for.

    Raises:
        DataError: The bundle has no such model.
        ConfigError: The model has no layers in the precision that is asked for.
        CompressDeployError: What ``build_engine`` and ``add_files`` raise.
    """
    settings = settings or BuildSettings()
    settings.require_sense(model)
    if model == TEACHER:
        onnx = bundle.folder / TEACHER_FILE
        if TEACHER_FILE not in bundle.manifest["files"]:
            raise DataError(f"{bundle.folder}: no {TEACHER_FILE}; build a target instead")
        if settings.precision == "int8":
            settings = replace(settings, precision="float32")
    else:
        onnx = bundle.model_path(model)
    with tempfile.TemporaryDirectory(prefix="compress-deploy-") as scratch:
        built = build_engine(onnx, Path(scratch) / "plan", settings, progress)
        name = f"{FOLDER}/{_name(model, built)}"
        grown = add_files(bundle, {name: built.plan, f"{name}.json": built.side})
    plan = grown.folder / name
    return grown, replace(built, plan=plan, side=plan.with_name(f"{plan.name}.json"))


def _name(model: str, built: BuiltEngine) -> str:
    gpu = built.about["gpu"]
    parts = [model, built.about["runtime"]["flavour"], *([_slug(gpu["name"])] if gpu else [])]
    return ".".join([*parts, "plan"])


def _slug(name: str) -> str:
    return "-".join("".join(c if c.isalnum() else " " for c in name.lower()).split())

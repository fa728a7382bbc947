"""Engines that are built on devices and kept in the bundle here."""

from __future__ import annotations

import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from deploy.bundle import Bundle
from deploy.devices.device import find_device
from deploy.devices.fleet import Outcome, run_fleet
from deploy.engines.settings import BuildSettings
from toolchain.measuring.progress_bars import Bars


def build_on(
    names: Sequence[str], folder: Path, model: str, settings: BuildSettings, *, as_json: bool
) -> int:
    """Build a bundle's model on each device, add the engines to the bundle; the exit status.

    Raises:
        ConfigError: The model has no layers in the precision that is asked for.
        CompressDeployError: The bundle cannot be read, or a device is not known.
    """
    settings.require_sense(model)  # before anything is copied to a device
    bundle = Bundle.open(folder)
    devices = [find_device(name) for name in names]
    asked = {**settings.to_dict(), "model": model}
    with Bars() as bars:
        tell = {device.name: bars.add(device.name) for device in devices}
        outcomes = run_fleet(
            devices, lambda device: device.build(bundle.folder, asked, tell[device.name])
        )
    if as_json:
        built = [{"device": each.device, **(each.result or {})} for each in outcomes if each]
        print(json.dumps(built, indent=2, ensure_ascii=False))
    elif any(outcomes):
        Console().print(_table([each for each in outcomes if each]))
    for each in outcomes:
        if not each:
            print(f"compress-deploy: {each.device}: {each.error}", file=sys.stderr)
    return 0 if all(outcomes) else 1


def _table(outcomes: Sequence[Outcome]) -> Table:
    table = Table(title="engines added to the bundle", title_justify="left")
    for title in ("device", "engine", "by", "for", "bytes", "built in"):
        table.add_column(title, overflow="fold")
    for each in outcomes:
        built: dict[str, Any] = each.result or {}
        about = built["about"]
        gpu = about.get("gpu") or {}
        runtime = about["runtime"]
        (plan,) = (name for name in built["files"] if not name.endswith(".json"))
        table.add_row(
            each.device,
            plan,
            f"{runtime['flavour']} {runtime['version']}",
            gpu.get("name", "no GPU seen"),
            f"{about['plan']['size_bytes']:,}",
            f"{about['build_s']:.1f} s",
        )
    return table

"""Which meter measures this device: the one whose scope covers what runs, with the reason.

A Jetson has INA chips, or tegrastats where sysfs is closed; never NVML, which opens there and tells
nothing.  Elsewhere a graphics card and the processor have meters of their own, and the one that
does not see the work measures idleness: what the model runs on decides.
"""

from __future__ import annotations

import os
import shutil
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Callable, Sequence

from deploy.errors import CompressDeployError, DeviceError
from deploy.machine.device_tree import is_jetson, read_compatible, read_model
from deploy.power.boards import Supply, choose_total, find_supply
from deploy.power.ina import DRIVERS, InaSource, find_rails
from deploy.power.meter import INTERVAL_S, PowerMeter, SampledMeter
from deploy.power.nvml import NvmlSource, open_nvml, visible_device
from deploy.power.rapl import ZONES, RaplSource, find_zones
from deploy.power.recorded import RecordedMeter
from deploy.power.tegrastats import TegrastatsMeter, first_line

METERS = ("ina", "tegrastats", "nvml", "rapl", "recorded:FILE.csv")
_GPU_WORDS = ("cuda", "tensorrt", "rtx", "trt", "gpu")


@dataclass(frozen=True)
class Candidate:
    """A meter that was looked for: the meter, or why there is none."""

    name: str
    meter: PowerMeter | None
    why: str | None


def find_meter(
    root: Path = Path("/"),
    *,
    provider: str | None = None,
    wanted: str | None = None,
    total: Sequence[str] = (),
    interval_s: float = INTERVAL_S,
) -> PowerMeter:
    """The power meter of this machine; it has been read once, so it works.

    ``provider`` is what the model runs on (``ort-cpu``, ``ort-cuda``, ``tensorrt`` ...).  ``wanted``
    names a meter of ``METERS`` instead of leaving the choice.  ``total`` names the rails that add up
    to the total, for boards that are not known.

    Raises:
        DeviceError: No sensor, or none that can be read, or two that see different things; says what
            was looked for and what to do.
    """
    if wanted is not None:
        return _wanted(root, wanted, total, interval_s)
    if on_jetson(root):
        return _jetson(root, total, interval_s)
    on_gpu = None if provider is None else any(word in provider.lower() for word in _GPU_WORDS)
    names = {None: ("nvml", "rapl"), True: ("nvml",), False: ("rapl",)}[on_gpu]
    found = [_try(name, partial(_open, root, name, total, interval_s)) for name in names]
    meters = [candidate.meter for candidate in found if candidate.meter is not None]
    if len(meters) > 1:
        raise DeviceError(
            "power: the graphics card (nvml) and the processor (rapl) have meters of their own; say "
            "which one sees the work: --meter nvml or --meter rapl"
        )
    if meters:
        return meters[0]
    looked = "; ".join(f"{candidate.name}: {_inner(candidate)}" for candidate in found)
    raise DeviceError(
        f"power: no sensor that sees {provider or 'this machine'}: {looked}; no INA chip in "
        f"{root / DRIVERS}; measure without power (--no-power), or give a recording (--meter "
        "recorded:FILE.csv)"
    )


def survey(root: Path = Path("/"), total: Sequence[str] = ()) -> list[Candidate]:
    """Every meter that this machine could have, with why not, for people."""
    return [
        _try(name, partial(_open, root, name, total, INTERVAL_S))
        for name in ("ina", "tegrastats", "nvml", "rapl")
    ]


def on_jetson(root: Path = Path("/")) -> bool:
    """Whether this is a Jetson, known or not; an INA3221 is enough where ``/proc`` is closed."""
    return is_jetson(root) or any((root / DRIVERS).glob("ina3221*/*-*"))


def _identity(root: Path) -> tuple[str | None, list[str]]:
    """Model and part names of the board, as far as there is a device tree."""
    try:
        return read_model(root), read_compatible(root)
    except DeviceError:
        return None, []


def _wanted(root: Path, wanted: str, total: Sequence[str], interval_s: float) -> PowerMeter:
    kind, _, path = wanted.partition(":")
    if kind == "recorded" and path:
        return RecordedMeter(Path(path))
    if wanted not in METERS[:4]:
        raise DeviceError(f"power: there is no meter {wanted!r}; choose from {', '.join(METERS)}")
    return _open(root, wanted, total, interval_s)


def _jetson(root: Path, total: Sequence[str], interval_s: float) -> PowerMeter:
    supply = find_supply(*_identity(root))
    closed = _closed(root, supply)
    if closed is None or (supply is not None and not supply.measurable):
        # What is wrong now is not known to tegrastats either: it reads the same chips.
        return _ina(root, total, interval_s)
    tool = _try("tegrastats", partial(_tegrastats, root, total, interval_s, f"sysfs: {closed}"))
    if tool.meter is None:
        raise DeviceError(f"{closed}; nor does tegrastats help: {_inner(tool)}")
    return tool.meter


def _closed(root: Path, supply: Supply | None) -> str | None:
    """Why sysfs tells no power here, ``None`` if it does."""
    try:
        rails = find_rails(root, supply)
        for rail in rails:
            rail.raw()
    except DeviceError as error:
        return str(error)
    return None if rails else f"ina: no INA3221 or INA238 in {root / DRIVERS}"


def _try(name: str, open_meter: Callable[[], PowerMeter]) -> Candidate:
    try:
        return Candidate(name, open_meter(), None)
    except CompressDeployError as error:
        return Candidate(name, None, str(error))


def _inner(candidate: Candidate) -> str:
    """The reason without the name that precedes it anyway."""
    return (candidate.why or "").replace(f"{candidate.name}: ", "", 1)


def _open(root: Path, name: str, total: Sequence[str], interval_s: float) -> PowerMeter:
    if name == "ina":
        return _ina(root, total, interval_s)
    if name == "tegrastats":
        return _tegrastats(root, total, interval_s)
    if name == "nvml":
        nvml = open_nvml()
        return SampledMeter(NvmlSource(nvml, visible_device(nvml)), interval_s)
    zones = find_zones(root)
    if not zones:
        raise DeviceError(f"rapl: no intel-rapl in {root / ZONES}; virtual machines hide it")
    source = RaplSource(zones)
    source.begin()
    return SampledMeter(source, interval_s)


def _ina(root: Path, total: Sequence[str], interval_s: float) -> PowerMeter:
    model, compatible = _identity(root)
    supply = find_supply(model, compatible)
    rails = find_rails(root, supply)
    if not rails and not (supply and not supply.measurable):
        raise DeviceError(f"ina: no INA3221 or INA238 in {root / DRIVERS}; is this a Jetson?")
    source = InaSource(rails, choose_total([r.name for r in rails], model, compatible, total))
    source.begin()
    source.read()
    return SampledMeter(source, interval_s)


def _tegrastats(
    root: Path, total: Sequence[str], interval_s: float, remark: str | None = None
) -> PowerMeter:
    inside = root / "usr/bin/tegrastats"
    path = str(inside) if os.access(str(inside), os.X_OK) else None
    if path is None and root == Path("/"):
        path = shutil.which("tegrastats")
    if path is None:
        raise DeviceError("tegrastats: not found; it comes with JetPack")
    rails = first_line((path,)).rails
    if not rails:
        raise DeviceError("tegrastats: prints no power; some releases need root for it")
    chosen = choose_total(rails, *_identity(root), total)
    return TegrastatsMeter(chosen, interval_s, (path,), remarks=[remark] if remark else [])

"""A plan and its side file: what the plan is tied to, read before anybody deserialises it.

A plan runs on the TensorRT version, the GPU architecture and the platform that it was built for,
and a foreign one may crash instead of being refused.  ``<plan>.json`` says what it is for.
"""

from __future__ import annotations

import json
import platform
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Mapping

from deploy.engines.bindings import MODULES
from deploy.engines.driver import Gpu
from deploy.engines.layers import Layer
from deploy.engines.precision import PrecisionSummary
from deploy.errors import DeviceError, StorageError
from deploy.manifest import sha256_of

FORMAT = "compress-deploy engine"
FORMAT_VERSION = 1
_KEYS = ("plan", "onnx", "runtime", "platform", "portable", "settings", "precision", "layers")
_TEXT = ((str,), "a text")
# What readers take for granted inside each object: its keys with what they may be.
_SHAPE: Mapping[str, Mapping[str, Any]] = {
    "plan": {"sha256": _TEXT},
    "onnx": {"sha256": _TEXT},
    "runtime": {"flavour": _TEXT, "version": _TEXT},
    "platform": {},
    "portable": {
        "versions": ((bool,), "true or false"),
        "gpus": ((str, type(None)), "a text or null"),
    },
    "settings": {},
    "precision": {},
    "gpu": {"name": _TEXT, "compute_capability": _TEXT},
}


@dataclass(frozen=True)
class PlanFile:
    """A plan with its side file.  Get one from ``open_plan``."""

    path: Path
    about: Mapping[str, Any]

    @property
    def runtime(self) -> str:
        """``tensorrt`` or ``rtx``."""
        return str(self.about["runtime"]["flavour"])

    @property
    def precision(self) -> PrecisionSummary:
        """What the builder proved.

        Raises:
            StorageError: The side file does not say it as it should.
        """
        try:
            return PrecisionSummary.from_dict(self.about["precision"])
        except (KeyError, TypeError) as error:
            raise self._damaged("precision", error) from error

    @property
    def layers(self) -> tuple[Layer, ...]:
        """The engine's layers.

        Raises:
            StorageError: The side file does not say them as it should.
        """
        try:
            return tuple(Layer.from_dict(layer) for layer in self.about["layers"])
        except (KeyError, TypeError) as error:
            raise self._damaged("layers", error) from error

    def require_platform(self) -> None:
        """Pass when the plan was built on such a system: what needs neither a driver nor a runtime to see.

        Raises:
            DeviceError: It was not; says for which.
        """
        mine = {"system": platform.system(), "machine": platform.machine()}
        if self.about["platform"] != mine:
            raise self._foreign("platform", _words(self.about["platform"]), _words(mine))

    def require_fit(self, runtime: str, version: str, gpu: Gpu | None) -> None:
        """Pass when the plan was built for this runtime, version, platform and GPU.

        Raises:
            DeviceError: It was not; says for what.
        """
        self.require_platform()
        built = self.about["runtime"]
        if built["flavour"] != runtime:
            raise self._foreign("runtime", MODULES[built["flavour"]], MODULES[runtime])
        same = built["version"] == version
        # A version-compatible plan carries its runtime and runs on its own version and later ones.
        newer = _numbers(built["version"]) <= _numbers(version)
        if not same and not (self.about["portable"]["versions"] and newer):
            raise self._foreign("TensorRT", built["version"], version)
        was, hardware = self.about.get("gpu"), self.about["portable"]["gpus"]
        if was is None or gpu is None or hardware == "any":
            return
        now, then = gpu.compute_capability, str(was["compute_capability"])
        on_ampere = _numbers(now) >= (8, 0) and _numbers(then) >= (8, 0)
        if now != then and not (hardware == "ampere_plus" and on_ampere):
            raise self._foreign("GPU", f"{was['name']} (SM {then})", f"{gpu.name} (SM {now})")
        # The same capability with other clocks and caches runs, with kernels that were chosen
        # for another GPU: TensorRT warns and so does nobody else, so a plan says that it may.
        if now == then and hardware is None and was["name"] != gpu.name:
            raise self._foreign("GPU", str(was["name"]), gpu.name)

    def _damaged(self, key: str, error: Exception) -> StorageError:
        return StorageError(
            f"{side_path(self.path)}: {key} is damaged ({type(error).__name__}: {error}); "
            "build the plan again"
        )

    def _foreign(self, what: str, built: str, here: str) -> DeviceError:
        return DeviceError(
            f"{self.path}: built for {what} {built} and this is {here}; build it here with: "
            "compress-deploy build BUNDLE"
        )


def side_path(plan: Path) -> Path:
    """Where the side file of a plan lies."""
    return plan.with_name(f"{plan.name}.json")


def _misshapen(about: Mapping[str, Any]) -> list[str]:
    """What of a side file that has all keys is not as readers rely on, a few words each."""
    wrong = []
    for section, keys in _SHAPE.items():
        inside = about.get(section)
        if section == "gpu" and inside is None:
            continue  # built where there was none
        if not isinstance(inside, dict):
            wrong.append(f"{section} is not an object")
            continue
        wrong += [
            f"{section}.{key} is not {words}"
            for key, (kinds, words) in keys.items()
            if not isinstance(inside.get(key, ...), kinds)
        ]
    if not wrong and about["runtime"]["flavour"] not in MODULES:
        wrong.append(f"runtime.flavour is not one of {list(MODULES)}")
    if not isinstance(about["layers"], list):
        wrong.append("layers is not a list")
    if not _are_profiles(about.get("profiles")):
        wrong.append("profiles do not give each input its shapes")
    return wrong


def _are_profiles(profiles: Any) -> bool:
    """Whether it is ``{input: [[shape, shape, shape], ...]}``, or nothing."""
    if profiles is None:
        return True
    try:
        shapes = [shape for ends in profiles.values() for three in ends for shape in three]
    except (AttributeError, TypeError):
        return False
    return all(
        isinstance(shape, list) and shape and all(isinstance(size, int) for size in shape)
        for shape in shapes
    )


def open_plan(path: str | Path) -> PlanFile:
    """The plan with its side file, its bytes checked against the hash.

    Raises:
        StorageError: Either is missing, or they do not belong together; says which.
    """
    plan = Path(path)
    side = side_path(plan)
    if not plan.is_file():
        raise StorageError(f"{plan}: no such file; give a plan that compress-deploy build wrote")
    try:
        about = json.loads(side.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise StorageError(
            f"{plan}: has no side file {side.name}, so nothing says what it runs on; build it "
            "again, or copy both files"
        ) from None
    except (OSError, ValueError) as error:
        raise StorageError(f"{side}: cannot be read ({error}); build the plan again") from error
    if not isinstance(about, dict) or about.get("format") != FORMAT:
        raise StorageError(f"{side}: is not the side file of an engine; build the plan again")
    if about.get("format_version") != FORMAT_VERSION:
        raise StorageError(
            f"{side}: format version is {about.get('format_version')!r}; this program reads "
            f"{FORMAT_VERSION}, build the plan again"
        )
    lacking = [key for key in _KEYS if key not in about]
    if lacking:
        raise StorageError(f"{side}: lacks {lacking}; build the plan again")
    wrong = _misshapen(about)
    if wrong:
        raise StorageError(f"{side}: is damaged: {'; '.join(wrong)}; build the plan again")
    try:
        sha256 = sha256_of(plan)
    except OSError as error:
        raise StorageError(f"{plan}: cannot be read ({error.strerror})") from error
    if sha256 != about["plan"]["sha256"]:
        raise StorageError(
            f"{plan}: its SHA-256 is not the one in {side.name}; it was changed or cut off, build "
            "it again or copy both files again"
        )
    return PlanFile(plan, about)


def _numbers(version: str) -> tuple[int, ...]:
    return tuple(int(part) for part in version.split(".") if part.isdigit())


def _words(where: Mapping[str, str]) -> str:
    return f"{where.get('system')} {where.get('machine')}"

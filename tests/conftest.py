"""Reproducible property tests, and reasons for the tests that this machine cannot run."""

from __future__ import annotations

import importlib.util
import platform
import shutil
from typing import Any

import pytest
from hypothesis import settings

settings.register_profile("house", deadline=None, derandomize=True, max_examples=25)
settings.load_profile("house")


def _missing_gpu() -> str | None:
    import torch

    return None if torch.cuda.is_available() else "no CUDA device"


def _missing_tensorrt() -> str | None:
    return None if importlib.util.find_spec("tensorrt") else "tensorrt is not installed"


def _missing_arm64() -> str | None:
    programs = ("qemu-aarch64", "qemu-aarch64-static")
    here = platform.machine() in ("aarch64", "arm64") or any(map(shutil.which, programs))
    return None if here else "neither an arm64 machine nor qemu-aarch64"


@pytest.fixture
def sessions(monkeypatch: pytest.MonkeyPatch) -> dict[Any, bool]:
    """Every session of ONNX Runtime that was opened, and whether it is open still."""
    from deploy.sessions.ort import OrtCpuSession

    opened: dict[Any, bool] = {}
    begin, end = OrtCpuSession.__init__, OrtCpuSession.close

    def opening(self: Any, *given: Any, **named: Any) -> None:
        begin(self, *given, **named)
        opened[self] = True

    def closing(self: Any) -> None:
        end(self)
        opened[self] = False

    monkeypatch.setattr(OrtCpuSession, "__init__", opening)
    monkeypatch.setattr(OrtCpuSession, "close", closing)
    return opened


_HARDWARE = {"gpu": _missing_gpu, "tensorrt": _missing_tensorrt, "arm64": _missing_arm64}


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for marker, missing in _HARDWARE.items():
        marked = [item for item in items if item.get_closest_marker(marker)]
        reason = missing() if marked else None
        for item in marked if reason else []:
            item.add_marker(pytest.mark.skip(reason=reason))

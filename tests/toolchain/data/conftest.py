"""A data section with its defaults, and small images to write to disk."""

from __future__ import annotations

import io
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest


@pytest.fixture
def config() -> Callable[..., Any]:
    """Builds a data section as the recipe does."""

    def build(kind: str, **changes: Any) -> Any:
        fields: dict[str, Any] = {
            "kind": kind,
            "root": None,
            "validation": 0.2,
            "split_seed": 0,
            "on_corrupt": "error",
            "image_size": None,
            "memory_limit_mb": 64,
            "preprocess": SimpleNamespace(mean=[0.0], std=[1.0]),
            "augment": SimpleNamespace(crop=0, flip=False),
        }
        return SimpleNamespace(**{**fields, **changes})

    return build


@pytest.fixture
def pixels() -> Callable[..., np.ndarray]:
    """Random pixels ``[N, H, W, C]``."""

    def draw(count: int, size: tuple[int, int] = (4, 6), channels: int = 3) -> np.ndarray:
        rng = np.random.default_rng(count)
        return rng.integers(0, 256, (count, *size, channels), dtype=np.uint8)

    return draw


@pytest.fixture
def encode() -> Callable[..., bytes]:
    """PNG (or another format) of one image ``[H, W, C]``."""
    image_module = pytest.importorskip("PIL.Image")

    def write(pixels_HWC: np.ndarray, kind: str = "PNG") -> bytes:
        grey = pixels_HWC.shape[-1] == 1
        buffer = io.BytesIO()
        image = image_module.fromarray(pixels_HWC[..., 0] if grey else pixels_HWC)
        image.save(buffer, format=kind)
        return buffer.getvalue()

    return write

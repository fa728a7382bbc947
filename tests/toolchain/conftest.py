"""A small recipe with data of its own, for what runs whole chains."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from toolchain.models import registry

ARGS = {"depth": 8, "in_channels": 1, "width": 4, "classes": 4}


@pytest.fixture(scope="package", autouse=True)
def one_thread() -> Iterator[None]:
    """Networks this small are quicker so, also beside other workers."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="session")
def quarters(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A recipe on four classes, told apart by which quarter of the image is bright."""
    folder = tmp_path_factory.mktemp("quarters")
    random = np.random.default_rng(0)
    arrays: dict[str, Any] = {}
    for part, count in (("train", 80), ("test", 20)):
        labels = np.arange(count) % 4
        images = random.integers(0, 120, (count, 8, 8), dtype=np.uint8)
        for image, label in zip(images, labels, strict=True):
            image[4 * (label // 2) :, 4 * (label % 2) :][:4, :4] += 100
        arrays |= {f"x_{part}": images, f"y_{part}": labels}
    np.savez(folder / "quarters.npz", **arrays)
    torch.manual_seed(0)
    save_file(registry.build("cifar_resnet", **ARGS).state_dict(), folder / "t.safetensors")
    train = {"epochs": 1, "batch_size": 16, "lr": 0.01, "warmup_epochs": 0}
    recipe = {
        "name": "quarters",
        "threads": 1,
        "precision": "float32",
        "model": {"builtin": "cifar_resnet", "args": ARGS, "checkpoint": "t.safetensors"},
        "data": {"kind": "npz", "root": "quarters.npz", "validation": 0.2},
        "structure": {"allocation": "macs"},
        "goals": {"macs": 0.6},
        "stages": [
            {"stage": "teacher"},
            {"stage": "prune"},
            {"stage": "slim"},
            {"stage": "recover", **train},
        ],
    }
    path = folder / "quarters.yaml"
    path.write_text(json.dumps(recipe))
    return path

"""Small quantized networks as bundles, and the faults of tests/exporters/faults.py."""

from __future__ import annotations

import importlib.util
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import onnx
import pytest
import torch
from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm

from deploy.bundle import Bundle, write_bundle
from deploy.sessions.ort import OrtCpuSession
from deploy.targets import Target
from exporters.onnx_from_torch import INPUT, OUTPUT
from toolchain import checkpoint
from toolchain.proof.parity import fresh_export
from toolchain.quantization.attach import Quantization, calibrate
from toolchain.runs.artifacts import installed_versions

NETS: dict[str, tuple[str, dict[str, Any], tuple[int, int, int]]] = {
    "resnet": ("cifar_resnet", {"depth": 8, "width": 4, "in_channels": 1}, (1, 8, 8)),
    "resnet-conv": ("cifar_resnet", {"depth": 8, "width": 4, "shortcut": "conv"}, (3, 8, 8)),
    "vgg": ("vgg", {"widths": [8, "M", 16]}, (3, 8, 8)),
    "mobilenet": (
        "mobilenet_v2",
        {"multiplier": 0.25, "stages": [[1, 8, 1, 1], [2, 8, 2, 2]]},
        (3, 8, 8),
    ),
}
ROWS = 48
MEAN, STD = (0.5,), (0.25,)


@pytest.fixture(scope="session")
def faults() -> ModuleType:
    path = Path(__file__).parents[2] / "exporters" / "faults.py"
    spec = importlib.util.spec_from_file_location("faults", path)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@dataclass(frozen=True)
class Case:
    """A network with its checkpoint, and what it exports to."""

    name: str
    student: Path
    shape: tuple[int, int, int]
    images_u8: np.ndarray
    models: dict[str, Path]

    @property
    def model(self) -> onnx.ModelProto:
        return onnx.load(self.models["ort-cpu"])

    def bundle(
        self, folder: Path, model: onnx.ModelProto | None = None, target: Target = "ort-cpu"
    ) -> Bundle:
        """A bundle of it, with ``model`` in place of what it exports to."""
        path = self.models[target]
        if model is not None:
            path = folder / "given.onnx"
            onnx.save(model, path)
        scale = (self.images_u8.astype(np.float32) / np.float32(255) - MEAN[0]) / STD[0]
        session = OrtCpuSession(path)
        outputs = session.run({INPUT: scale.astype(np.float32)})[OUTPUT]
        session.close()
        return write_bundle(
            folder / "bundle",
            name=self.name,
            targets={target: path},
            input_name=INPUT,
            input_shape=self.shape,
            output_name=OUTPUT,
            classes=[str(label) for label in range(10)],
            mean=MEAN,
            std=STD,
            sample_inputs=self.images_u8,
            sample_outputs=outputs,
            recipe={},
            seeds={},
            versions=installed_versions(),
            files={f"student/{file.name}": file for file in self.student.iterdir()},
        )


def _randomize(network: nn.Module) -> None:
    for module in network.modules():
        if isinstance(module, _BatchNorm):
            nn.init.normal_(module.running_mean, std=0.1)
            nn.init.uniform_(module.running_var, 0.5, 2.0)
            nn.init.uniform_(module.weight, 0.5, 1.5)
            nn.init.normal_(module.bias, std=0.3)


@pytest.fixture(scope="session")
def case(tmp_path_factory: pytest.TempPathFactory) -> Callable[..., Case]:
    """Cases by name, made once, because an export takes a second."""
    made: dict[str, Case] = {}

    def case(name: str, *targets: Target) -> Case:
        if name not in made:
            made[name] = _make(name, tmp_path_factory.mktemp(name))
        found = made[name]
        network, _ = checkpoint.load(found.student)
        x = torch.randn(2, *found.shape)
        for target in targets or ("ort-cpu",):
            if target not in found.models:
                out = found.student.parent / f"{target}.onnx"
                found.models[target] = fresh_export(network, x, target, out)
        return found

    return case


def _make(name: str, folder: Path) -> Case:
    builtin, args, shape = NETS[name]
    classes = tuple(str(label) for label in range(10))
    spec = checkpoint.Spec(builtin, None, args, shape, classes, quantization=Quantization())
    with torch.random.fork_rng():
        torch.manual_seed(0)
        network = checkpoint.build(spec)
        _randomize(network)
        images_u8 = torch.randint(0, 256, (ROWS, *shape), dtype=torch.uint8)
        calibrate(network.eval(), [(images_u8.float() / 255 - MEAN[0]) / STD[0]])
    student = folder / "student"
    checkpoint.save(network, spec, student)
    return Case(name, student, shape, images_u8.numpy(), {})

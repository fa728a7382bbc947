"""An int8 file is a byte per weight, and little else."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import nn

from deploy.targets import Target
from toolchain.graph import trace
from toolchain.models.registry import build
from toolchain.proof.parity import fresh_export
from toolchain.quantization.attach import Quantization, attach_quantizers, calibrate


@pytest.mark.parametrize("target", ["ort-cpu", "tensorrt"])
def test_resnet56(target: Target, tmp_path: Path) -> None:
    torch.manual_seed(0)
    network = trace(build("cifar_resnet", depth=56))
    weights = sum(
        module.weight.numel()
        for module in network.modules()
        if isinstance(module, nn.Conv2d | nn.Linear)
    )
    attach_quantizers(network, Quantization())
    images_BCHW = torch.randn(2, 3, 32, 32)
    calibrate(network.eval(), [images_BCHW])
    path = fresh_export(network, images_BCHW, target, tmp_path / "resnet56.onnx")
    assert weights > 800_000
    assert weights < path.stat().st_size < 1.05 * weights + 100_000

"""What a file should hold: the student exported again, or the float file calibrated again."""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import TYPE_CHECKING

import torch

from deploy.bundle import Bundle
from deploy.targets import Target
from exporters import onnx_file
from exporters.proof.ladder import Samples
from toolchain.proof.calibrated import ROWS, calibrated_anew, calibration_method
from toolchain.proof.parity import fresh_export

if TYPE_CHECKING:
    from onnx import ModelProto
    from torch import fx


def exported_again(
    bundle: Bundle, target: Target, network: fx.GraphModule | None, absent: str
) -> tuple[ModelProto | None, str]:
    """The student exported again, or, where the bundle has none, why it is ``absent``."""
    if network is None:
        return None, absent
    with tempfile.TemporaryDirectory() as scratch:
        return onnx_file.load(_exported(bundle, target, network, Path(scratch))), ""


def calibrated_again(
    bundle: Bundle, target: Target, network: fx.GraphModule | None, samples: Samples
) -> tuple[ModelProto | None, str]:
    """The float file quantized again, on the first samples, or why it cannot be."""
    method = calibration_method(bundle)
    if method is None or target == "tensorrt-fp16":
        return None, "the file was quantized after training, and the bundle does not say how"
    inputs, _ = next(samples.batches(min(ROWS, samples.rows), ROWS))
    with tempfile.TemporaryDirectory() as scratch:
        float_onnx = bundle.folder / "teacher.onnx"
        if network is not None:
            float_onnx = _exported(bundle, target, network, Path(scratch))
        return calibrated_anew(float_onnx, inputs, method, target), ""


def _exported(bundle: Bundle, target: Target, network: fx.GraphModule, folder: Path) -> Path:
    images_u8, _ = bundle.samples()
    example = torch.from_numpy(bundle.preprocess(images_u8[:2]))
    example = example if len(example) > 1 else example.repeat(2, 1, 1, 1)
    return fresh_export(network, example, target, folder / "fresh.onnx")

"""ONNX Runtime's own static quantization: the baseline that a competent engineer writes first.

Float ONNX -> ``quant_pre_process`` (shapes inferred, BatchNorm and constants folded) ->
``quantize_static`` with Q/DQ pairs and int8 weights per output channel. Activations are uint8 for
``ort-cpu``; for ``tensorrt`` int8 with zero point 0 and a bias in float, without which its importer
refuses the file. Three calibrations are ONNX Runtime's, ``mse`` is ``exporters/calibration/mse_ranges.py``.
https://onnxruntime.ai/docs/performance/model-optimizations/quantization.html
"""

from __future__ import annotations

import contextlib
import io
import itertools
import tempfile
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

from deploy.errors import (
    CompressDeployError,
    ConfigError,
    DataError,
    MissingDependency,
    StorageError,
)
from exporters import onnx_file
from exporters.calibration.mse_ranges import mse_ranges

if TYPE_CHECKING:
    from onnx import ModelProto

Method = Literal["minmax", "entropy", "percentile", "mse"]
Grid = Literal["ort-cpu", "tensorrt"]
# The ranges of `mse` go beside those of MinMax and replace them.
_METHODS = {"minmax": "MinMax", "entropy": "Entropy", "percentile": "Percentile", "mse": "MinMax"}
GRIDS = ("ort-cpu", "tensorrt")
PER_CHANNEL_OPSET = 13  # the first whose DequantizeLinear has an axis


def static_int8(
    float_onnx: Path,
    calibration_batches: Iterable[np.ndarray],
    out: Path,
    *,
    method: Method = "minmax",
    grid: Grid = "ort-cpu",
) -> Path:
    """Quantize the one-input model ``float_onnx`` to ``out`` with ranges seen on the batches.

    Batches are float32 ``[B, ...]``, pre-processed as the model wants them.  ``out`` appears whole
    or not at all.

    Raises:
        ConfigError: The method or the grid is unknown.
        DataError: There are no calibration batches.
        StorageError: There is no such model, the file is not a whole one, its opset is older than 13
            and cannot be raised, or ONNX Runtime's quantizer cannot take it.
        MissingDependency: onnxruntime or onnx is not installed.
    """
    if method not in _METHODS:
        raise ConfigError(f"calibration method: unknown {method!r}; choose from {sorted(_METHODS)}")
    if grid not in GRIDS:
        raise ConfigError(f"grid: unknown {grid!r}; choose from {list(GRIDS)}")
    model = onnx_file.load(float_onnx)
    constants = {tensor.name for tensor in model.graph.initializer}
    source = next(value.name for value in model.graph.input if value.name not in constants)
    try:
        from onnxruntime import quantization as ort
        from onnxruntime.quantization.shape_inference import quant_pre_process
    except ImportError as error:
        raise MissingDependency(
            f"static quantization needs {error.name}, which is not installed; "
            "install it with: pip install onnx onnxruntime"
        ) from error

    if method == "mse":  # looks at them twice
        calibration_batches = [np.asarray(batch, np.float32) for batch in calibration_batches]
    feeds = (
        {source: np.ascontiguousarray(batch, dtype=np.float32)} for batch in calibration_batches
    )
    first = next(feeds, None)
    if first is None:
        raise DataError("calibration: there are no batches; give at least one")
    symmetric = grid == "tensorrt"
    options: dict[str, Any] = {}
    if symmetric:
        options = {"ActivationSymmetric": True, "WeightSymmetric": True, "QuantizeBias": False}

    class Reader(ort.CalibrationDataReader):
        """The first batch, which was looked at above, then the others."""

        def __init__(self) -> None:
            self._feeds = itertools.chain([first], feeds)

        def get_next(self) -> dict[str, np.ndarray] | None:
            return next(self._feeds, None)

    out.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=out.parent, prefix=f".{out.name}.") as scratch:
        prepared, quantized = Path(scratch, "prepared.onnx"), Path(scratch, "quantized.onnx")
        if _opset(model) < PER_CHANNEL_OPSET:
            float_onnx = _raised(model, float_onnx.name, Path(scratch, "raised.onnx"))
        with _of_onnx_runtime(float_onnx.name, method):
            # Symbolic shape inference wants sympy and knows nothing about CNNs that ONNX's lacks.
            quant_pre_process(str(float_onnx), str(prepared), skip_symbolic_shape=True)
        if method == "mse":
            assert isinstance(calibration_batches, list)
            ranges = mse_ranges(prepared, calibration_batches, symmetric=symmetric)
            options["TensorQuantOverrides"] = {
                name: [{"rmin": np.float32(low), "rmax": np.float32(high)}]
                for name, (low, high) in ranges.items()
            }
        with _of_onnx_runtime(float_onnx.name, method):
            ort.quantize_static(
                str(prepared),
                str(quantized),
                Reader(),
                quant_format=ort.QuantFormat.QDQ,
                activation_type=ort.QuantType.QInt8 if symmetric else ort.QuantType.QUInt8,
                weight_type=ort.QuantType.QInt8,
                per_channel=True,
                calibrate_method=getattr(ort.CalibrationMethod, _METHODS[method]),
                extra_options=options,
            )
        quantized.replace(out)
    return out


@contextmanager
def _of_onnx_runtime(name: str, method: str) -> Iterator[None]:
    """Inside the block another tool works on a model that nobody foresaw: what it prints is dropped, and what
    it raises, of whatever type, is one line.
    """
    try:
        with contextlib.redirect_stdout(io.StringIO()):
            yield
    except CompressDeployError:
        raise
    except Exception as error:
        raise StorageError(
            f"{name}: ONNX Runtime's quantizer, calibrating by {method}, stops with "
            f"{type(error).__name__} ({' '.join(str(error).split())[:200]}); accepted is a graph of standard "
            "float operators; look for others with compress-deploy lint, or export it again"
        ) from error


def _opset(model: ModelProto) -> int:
    return max(
        (entry.version for entry in model.opset_import if entry.domain in ("", "ai.onnx")),
        default=1,
    )


def _raised(model: ModelProto, name: str, out: Path) -> Path:
    """The model in ``PER_CHANNEL_OPSET``, as the file ``out``."""
    import onnx
    from onnx import version_converter

    try:
        onnx.save(version_converter.convert_version(model, PER_CHANNEL_OPSET), out)
    except (RuntimeError, ValueError, onnx.checker.ValidationError) as error:
        raise StorageError(
            f"{name}: opset {_opset(model)} cannot be raised to {PER_CHANNEL_OPSET} "
            f"({' '.join(str(error).split())[:200]}), which int8 weights with a scale per channel need; "
            "export it again with opset 17"
        ) from error
    return out

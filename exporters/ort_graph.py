"""Which layers does ONNX Runtime really compute with integers?  Ask its optimised graph.

A Q/DQ model is a wish.  ONNX Runtime fuses DQ -> Conv -> Q into an integer kernel only where the
pattern fits (``exporters/ort_fusion.py``), and runs everything else in float, slower than a float
model and without a word.
"""

from __future__ import annotations

import tempfile
from collections import Counter
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from deploy.errors import VerificationError
from deploy.sessions.ort import OrtCpuSession
from exporters import onnx_file
from exporters.ort_fusion import CONVOLUTIONS, NO_KERNEL, UNWEIGHTED, WEIGHTED, SourceGraph


@dataclass(frozen=True)
class Layer:
    """A node of the source graph, what ONNX Runtime made of it and, if that is float, why."""

    name: str
    op_type: str
    kernel: str
    reason: str = ""


@dataclass(frozen=True)
class KernelReport:
    """The optimised graph, summed up; truthy when no convolution was left in float needlessly.

    ``integer`` and ``float`` cover Conv, ConvTranspose, Gemm and MatMul; ``other_float`` names
    layers without weights that interrupt the integers.  ``quantize`` and ``dequantize`` count the
    nodes left over: one each, at the two ends, is the least.
    """

    integer: tuple[Layer, ...]
    float: tuple[Layer, ...]
    other_float: tuple[Layer, ...]
    quantize: int
    dequantize: int
    operators: dict[str, int]

    @property
    def float_convolutions(self) -> tuple[Layer, ...]:
        """Those that have an integer kernel, which a ConvTranspose has not, whatever its pattern."""
        able = CONVOLUTIONS - NO_KERNEL
        return tuple(layer for layer in self.float if layer.op_type in able)

    def __bool__(self) -> bool:
        return bool(self.integer) and not self.float_convolutions

    def require(self) -> KernelReport:
        """Itself when every convolution is an integer kernel.

        Raises:
            VerificationError: With the layers that are not, and the reason of each.
        """
        if not self:
            named = "; ".join(f"{layer.name} ({layer.reason})" for layer in self.float_convolutions)
            raise VerificationError(
                f"ONNX Runtime computes {len(self.float_convolutions)} convolutions in float: "
                f"{named or 'there is no integer kernel at all'}; "
                "every convolution must become an integer kernel: export for target ort-cpu"
            )
        return self

    def notes(self) -> list[str]:
        """One sentence per float leftover, for a report."""
        return [
            f"{layer.op_type} {layer.name} runs in float: {layer.reason}"
            for layer in (*self.float, *self.other_float)
        ]

    def to_dict(self) -> dict[str, Any]:
        return {**asdict(self), "all_convolutions_integer": bool(self)}


def kernel_report(path: Path, threads: int = 1) -> KernelReport:
    """Load ``path`` as an ``OrtCpuSession`` would and look at the graph that is executed.

    Raises:
        StorageError: There is no such file, or it is not a whole model.
        DeviceError: ONNX Runtime cannot load it.
        MissingDependency: onnx or onnxruntime is not installed.
    """
    model = onnx_file.load(path)
    import onnx  # there: the line above has read a file with it

    graph = SourceGraph(model)
    # Fusions derive the name of a kernel from the node it replaces, so each node gets one that is
    # unique and recognisable.
    tags = {}
    for index, node in enumerate(model.graph.node):
        tags[f"source{index}"] = (node.name or node.output[0], node)
    with tempfile.TemporaryDirectory() as scratch:
        tagged, optimized = Path(scratch, "tagged.onnx"), Path(scratch, "optimized.onnx")
        copy = onnx.ModelProto()
        copy.CopyFrom(model)
        for index, node in enumerate(copy.graph.node):
            node.name = f"source{index}"
        onnx.save(copy, str(tagged))
        OrtCpuSession(tagged, threads, optimized_model_path=optimized, name=path.name).close()
        executed = onnx.load(str(optimized), load_external_data=False)

    by_name = {node.name.split("_token_")[0]: node for node in executed.graph.node}
    by_output = {output: node for node in executed.graph.node for output in node.output}
    integer, left_float, others = [], [], []
    for tag, (name, node) in tags.items():
        if node.op_type not in WEIGHTED | UNWEIGHTED:
            continue
        kernel = by_name.get(tag) or by_output.get(node.output[0])
        kernel_name = kernel.op_type if kernel else ""
        if kernel is not None and is_integer(kernel.op_type):
            if node.op_type in WEIGHTED:
                integer.append(Layer(name, node.op_type, kernel_name))
            continue
        if kernel is None and graph.is_constant(node):
            continue
        layer = Layer(name, node.op_type, kernel_name, graph.why_float(node))
        if node.op_type in WEIGHTED:
            left_float.append(layer)
        elif graph.touches_quantizer(node):
            others.append(layer)
    operators = Counter(node.op_type for node in executed.graph.node)
    return KernelReport(
        tuple(integer),
        tuple(left_float),
        tuple(others),
        operators["QuantizeLinear"],
        operators["DequantizeLinear"],
        dict(sorted(operators.items())),
    )


def is_integer(op_type: str) -> bool:
    return op_type.startswith(("QLinear", "QGemm", "MatMulInteger", "ConvInteger"))

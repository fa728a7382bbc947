"""A lowered torch module to one ONNX file: pinned opset, dynamic batch, checked, metadata kept."""

from __future__ import annotations

import ast
import contextlib
import io
import logging
import warnings
from collections import Counter
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor, nn

from deploy.errors import VerificationError
from exporters.census import census, require_same
from exporters.float16 import LEAST_OPSET, to_float16
from exporters.qdq_ops import FakeQuantize, translations

if TYPE_CHECKING:
    from onnx import ModelProto

OPSET = 18
INPUT, OUTPUT = "images", "logits"


def export_onnx(
    module: nn.Module,
    example: Tensor,
    path: Path,
    *,
    metadata: Mapping[str, str] | None = None,
    opset: int = OPSET,
    float16: bool = False,
) -> Path:
    """Write ``module`` in eval mode, with its weights in the file and a free batch axis.

    ``example`` is one input [B, ...] with B >= 2, so that a batch of one is not taken for a constant.
    Nodes are named by the path of the module that they come from and their operator:
    ``layer1.0.conv1/Conv``. ``float16`` is for what is float inside; inputs and outputs stay float32.

    Raises:
        VerificationError: The file fails ONNX's checker, or a quantizer was lost on the way.
    """
    import onnx

    opset = max(opset, LEAST_OPSET) if float16 else opset

    module = module.eval()
    batch = torch.export.Dim("batch", min=1)
    with warnings.catch_warnings(), _quiet_exporter(), _interruptible():
        warnings.simplefilter("ignore")
        program = torch.onnx.export(
            module,
            (example,),
            dynamo=True,
            opset_version=opset,
            external_data=False,
            optimize=False,
            dynamic_shapes=({0: batch},),
            input_names=[INPUT],
            output_names=[OUTPUT],
            custom_translation_table=translations(opset),
            verbose=False,
        )
    assert program is not None
    model = program.model_proto
    _require_quantizers(module, model, path.name)
    for tidy in (_fold_constants_into_initializers, _name_nodes_by_module, _forget_the_exporter):
        before = census(model)
        tidy(model)
        require_same(before, census(model), f"{path.name}: {tidy.__name__}")
    if float16:
        to_float16(model)
    for key, value in sorted((metadata or {}).items()):
        entry = model.metadata_props.add()
        entry.key, entry.value = key, value
    try:
        onnx.checker.check_model(model, full_check=True)
    except onnx.checker.ValidationError as error:
        raise VerificationError(f"{path.name}: onnx.checker refuses the export: {error}") from error
    onnx.save(model, path)
    return path


@contextlib.contextmanager
def _interruptible() -> Iterator[None]:
    """Lets an interrupt through, of which torch makes a failed export when it comes while it imports."""
    try:
        yield
    except Exception as error:
        before: BaseException | None = error
        while before is not None:
            if isinstance(before, KeyboardInterrupt):
                raise KeyboardInterrupt from error
            before = before.__cause__ or before.__context__
        raise


def _require_quantizers(module: nn.Module, model: ModelProto, name: str) -> None:
    """Every activation grid of the module was written, with the scale that it has to the last bit."""
    wanted = Counter(
        np.float64(part.scale).tobytes()
        for part in module.modules()
        if isinstance(part, FakeQuantize)
    )
    written: Counter[bytes] = Counter()
    for quantizer, count in census(model).items():
        if quantizer.op_type == "QuantizeLinear":
            written[quantizer.scales] += count
    lost = (wanted - written).total()
    if lost:
        raise VerificationError(
            f"{name}: {written.total()} QuantizeLinear nodes were written for {wanted.total()} "
            f"quantizers, and {lost} scales are in none; accepted is one node with its scale for "
            "each; take unused quantizers out of the network"
        )


def _name_nodes_by_module(model: ModelProto) -> None:
    """``node_conv2d_7`` becomes ``layer1.0.conv1/Conv``; what no module made keeps its own name."""
    seen: Counter[str] = Counter()
    for node in model.graph.node:
        scopes = next(
            (p.value for p in node.metadata_props if p.key == "pkg.torch.onnx.name_scopes"), "[]"
        )
        *outer, own = ast.literal_eval(scopes) or [node.name]
        name = f"{next((path for path in reversed(outer) if path), own)}/{node.op_type}"
        seen[name] += 1
        node.name = name if seen[name] == 1 else f"{name}_{seen[name]}"


def _fold_constants_into_initializers(model: ModelProto) -> None:
    """Constant nodes become shared initializers: one tensor for each distinct scale and zero point."""
    import onnx

    graph = model.graph
    renamed: dict[str, str] = {}
    seen: dict[bytes, str] = {}
    kept = []
    for node in graph.node:
        if node.op_type == "Constant" and node.attribute[0].name == "value":
            tensor = onnx.TensorProto()
            tensor.CopyFrom(node.attribute[0].t)
            tensor.name = ""
            key = tensor.SerializeToString()
            if key not in seen:
                seen[key] = tensor.name = node.output[0]
                graph.initializer.append(tensor)
            renamed[node.output[0]] = seen[key]
        else:
            kept.append(node)
    for node in kept:
        for place, name in enumerate(node.input):
            node.input[place] = renamed.get(name, name)
    del graph.node[:]
    graph.node.extend(kept)


def _forget_the_exporter(model: ModelProto) -> None:
    """Take out stack traces of the exporting machine and the exporter's own bookkeeping."""
    graph = model.graph
    notes = (graph.input, graph.output, graph.value_info, graph.initializer, graph.node)
    for part in (model, graph, *(one for several in notes for one in several)):
        del part.metadata_props[:]
        part.doc_string = ""


@contextlib.contextmanager
def _quiet_exporter() -> Iterator[None]:
    """Keep the exporter's progress prints and its notes about absent packages off the terminal."""
    loggers = [logging.getLogger(name) for name in ("torch.onnx", "onnxscript", "onnx_ir")]
    levels = [logger.level for logger in loggers]
    for logger in loggers:
        logger.setLevel(logging.ERROR)
    try:
        with contextlib.redirect_stdout(io.StringIO()):
            yield
    finally:
        for logger, level in zip(loggers, levels, strict=True):
            logger.setLevel(level)

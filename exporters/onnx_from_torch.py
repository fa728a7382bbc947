"""A lowered torch module to one ONNX file: pinned opset, dynamic batch, checked, metadata kept."""

from __future__ import annotations

import contextlib
import io
import logging
import warnings
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from deploy.errors import VerificationError
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
) -> Path:
    """Write ``module`` in eval mode, with its weights in the file and a free batch axis.

    ``example`` is one input [B, ...] with B >= 2, so that a batch of one is not taken for a constant.

    Raises:
        VerificationError: The file fails ONNX's checker, or a quantizer was lost on the way.
    """
    import onnx

    module = module.eval()
    batch = torch.export.Dim("batch", min=1)
    with warnings.catch_warnings(), _quiet_exporter():
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
    _fold_constants_into_initializers(model)
    _forget_the_exporter(model)
    for key, value in sorted((metadata or {}).items()):
        entry = model.metadata_props.add()
        entry.key, entry.value = key, value
    try:
        onnx.checker.check_model(model, full_check=True)
    except onnx.checker.ValidationError as error:
        raise VerificationError(f"{path.name}: onnx.checker refuses the export: {error}") from error
    wanted = sum(isinstance(part, FakeQuantize) for part in module.modules())
    written = sum(node.op_type == "QuantizeLinear" for node in model.graph.node)
    if written < wanted:
        raise VerificationError(
            f"{path.name}: {written} QuantizeLinear nodes were written for {wanted} quantizers; "
            "accepted is one for each; take unused quantizers out of the network"
        )
    onnx.save(model, path)
    return path


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

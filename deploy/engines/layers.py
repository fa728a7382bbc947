"""An engine's layers as TensorRT describes them, in one form.

Three dialects say the same:

* the inspector's JSON of TensorRT 8.6 to 10.x: tensors with ``Format/Datatype`` (a sentence such as
  ``"Row major linear FP32 format"``), ``Bindings`` as a list of names
* that of 11 and of TensorRT-RTX: ``Datatype`` and ``Format`` apart, ``I/O Tensors`` as objects
* the text of one line per layer that the builder logs for a finished engine at the verbosity
  ``detailed``; it needs no GPU, and has the fields of the JSON of its version

A layer of a network with a dynamic batch has no format until the inspector is given a context with
shapes ("N/A due to dynamic shapes").

Sources: NVIDIA's documentation of the engine inspector
(https://docs.nvidia.com/deeplearning/tensorrt/10.16.1/inference-library/engine-tools.html) and of
its migration
(https://docs.nvidia.com/deeplearning/tensorrt/11.3.0/api/migration/tensorrt-10x-to-11x-IEngineInspector.html);
build logs of tensorrt-rtx 1.7.1.
"""

from __future__ import annotations

import json
import re
from dataclasses import dataclass
from typing import Any, Iterator, Mapping, Sequence

from deploy.engines.messages import LAYERS
from deploy.errors import DeviceError

# Names of types in any dialect, longest first: "FP32" is not looked for inside another word.
_TYPES = {
    "int8": ("INT8", "I8"),
    "uint8": ("UINT8",),
    "int4": ("INT4",),
    "float8": ("FP8", "E4M3", "F8"),
    "float4": ("FP4", "E2M1"),
    "bfloat16": ("BF16", "BFLOAT16", "BFLOAT"),
    "float16": ("FP16", "HALF", "F16", "FLOAT16"),
    "float32": ("FP32", "FLOAT", "F32", "FLOAT32"),
    "int32": ("INT32", "I32"),
    "int64": ("INT64", "I64"),
    "bool": ("BOOL",),
}
_NAMES = {spelling: name for name, spellings in _TYPES.items() for spelling in spellings}
_NODE = re.compile(r"\[ONNX Layer: (.*?)\](?=[\x1e\x1f]|$)")
_KEY = re.compile(r"[A-Z][A-Za-z/]*: ?")
# A fusion of the compiler is named after what it fused: __myl_CastMulFc_myl0_6.
_FUSED = re.compile(r"^__myl_\w*?(?:(Conv|Corr)|(Fc|Gemm|MatMul|Matmul))(?=[A-Z_0-9]|$)")
_REFORMATS = ("reformat", "reformatter", "copy", "nooperation", "noop")
_CONVOLUTIONS = ("conv", "correlation")
_PRODUCTS = ("gemm", "matmul", "matrixmultiply", "fullyconnected", "innerproduct")


@dataclass(frozen=True)
class Layer:
    """A layer of an engine.

    ``precision`` is the type that it computes from: its first input's, and for layers with weights
    float if the weights are not integers too.  Empty when TensorRT does not say.
    ``nodes`` are the ONNX nodes that it was made of.
    """

    name: str
    type: str
    precision: str
    output: str
    tactic: str
    nodes: tuple[str, ...]
    kind: str

    @property
    def is_convolution(self) -> bool:
        return self.kind == "convolution"

    @property
    def has_weights(self) -> bool:
        return self.kind in ("convolution", "product")

    def to_dict(self) -> dict[str, Any]:
        return {**self.__dict__, "nodes": list(self.nodes)}

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> Layer:
        return cls(**{**data, "nodes": tuple(data["nodes"])})


def layers_from_json(text: str) -> list[Layer]:
    """Layers from ``EngineInspector.get_engine_information(JSON)``, either dialect.

    Raises:
        DeviceError: It is no such JSON, or names layers without describing them.
    """
    try:
        # TensorRT 8.6 writes infinities and NaN of scales as C does.
        described = json.loads(re.sub(r"(?<=[:,\[\s])-?(?:nan|inf)(?=[,\]}\s])", "null", text))
        layers = list(described["Layers"])
    except (ValueError, KeyError, TypeError) as error:
        raise DeviceError(
            f"engine inspector: its answer is not understood ({type(error).__name__}: {error}); "
            "report it with the version of TensorRT"
        ) from error
    if any(not isinstance(layer, dict) for layer in layers):
        raise DeviceError(
            "engine inspector: the engine only knows names of its layers; build it with verbosity "
            "'detailed'"
        )
    return [_layer(layer) for layer in layers]


def layers_from_log(text: str) -> list[Layer]:
    """Layers from the message ``Layers:`` that the builder logs."""
    body = text[len(LAYERS) :] if text.startswith(LAYERS) else text
    body = re.split(r"\n\s*(?:I/O Tensors|Bindings|Engine Metadata):", body)[0]
    # A line starts a layer; a name may hold a line break, its continuation starts otherwise.
    lines = re.split(r"\n(?=Name: )", body.strip("\n"))
    return [_layer(_fields(line)) for line in lines if "LayerType: " in line]


def _layer(described: Mapping[str, Any]) -> Layer:
    kind_of = str(described.get("LayerType", ""))
    parameter = str(described.get("ParameterType", ""))
    kind = _kind(kind_of, parameter, str(described.get("Name", "")))
    inputs, outputs = _types(described.get("Inputs")), _types(described.get("Outputs"))
    precision = next((name for name in (*inputs, *outputs) if name), "")
    weights = _weight_types(described)
    if kind in ("convolution", "product") and precision == "int8" and weights:
        precision = "int8" if "int8" in weights else weights[0]
    return Layer(
        name=str(described.get("Name", "")),
        type=kind_of,
        precision=precision,
        output=next((name for name in outputs if name), ""),
        tactic=str(described.get("TacticName", "")),
        nodes=tuple(_NODE.findall(str(described.get("Metadata", "")))),
        kind=kind,
    )


def _kind(layer_type: str, parameter: str, name: str) -> str:
    fused = _FUSED.match(name)
    if fused:
        return "convolution" if fused.group(1) else "product"
    words = (parameter.lower(), layer_type.lower())
    for kind, names in (("convolution", _CONVOLUTIONS), ("product", _PRODUCTS)):
        if any(name in word for name in names for word in words):
            return kind
    return "reformat" if any(word in _REFORMATS for word in words) else "other"


def _types(tensors: Any) -> list[str]:
    found = [t for t in tensors or () if isinstance(t, dict)]
    return [
        _type(t.get("Datatype") or t.get("Format/Datatype") or t.get("DataType")) for t in found
    ]


def _type(said: Any) -> str:
    for word in re.findall(r"[A-Za-z0-9]+", str(said or "")):
        if word.upper() in _NAMES:
            return _NAMES[word.upper()]
    return ""


def _weight_types(described: Mapping[str, Any]) -> list[str]:
    """10.x has ``Weights: {Type, Count}``; 11 and RTX list them first among ``Constants``."""
    weights = described.get("Weights")
    if isinstance(weights, dict) and weights.get("Count"):
        return [_type(weights.get("Type"))]
    return [name for name in _types(described.get("Constants")) if name]


def _fields(text: str) -> dict[str, Any]:
    """``Key: value, Key: value`` with values in brackets and braces, as the builder logs it."""
    found: dict[str, Any] = {}
    for part in _split(text):
        match = _KEY.match(part)
        if match is None:
            continue
        value = part[match.end() :].strip()
        found[match.group().rstrip(": ")] = _value(value)
    return found


def _value(text: str) -> Any:
    if text.startswith("[") and text.endswith("]"):
        items = [item.strip() for item in _split(text[1:-1], plain=True)]
        if items and items[0].startswith("{"):
            return [_fields(item.strip("{} ")) for item in items]
        return text if text.startswith("[ONNX") else [item for item in items if item]
    if text.startswith("{") and text.endswith("}"):
        return {key.strip('"'): str(value).strip('"') for key, value in _quoted(text[1:-1])}
    return text


def _quoted(text: str) -> Iterator[Sequence[str]]:
    for part in _split(text, plain=True):
        key, found, value = part.partition(":")
        if found:
            yield key.strip(), value.strip()


def _split(text: str, plain: bool = False) -> Iterator[str]:
    """Cut at commas outside brackets; unless ``plain``, only where a key follows."""
    depth = start = 0
    for index, letter in enumerate(text):
        depth += (letter in "[{") - (letter in "]}")
        if letter == "," and depth <= 0 and (plain or _KEY.match(text, index + 2)):
            yield text[start:index].strip()
            start = index + 1
    yield text[start:].strip()

"""The proof of precision: which types an engine's layers really compute with."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Mapping, Sequence

from deploy.engines.layers import Layer
from deploy.errors import VerificationError

_ADVICE = {
    "int8": "check that both inputs of each go through QuantizeLinear and DequantizeLinear",
    "float16": "where TensorRT types strongly the graph itself has to be float16: take the target "
    "tensorrt-fp16, or build with typing 'weak' on a TensorRT that has it",
    "": "export the model in that type",
}


@dataclass(frozen=True)
class PrecisionSummary:
    """Layers by the type that they compute from; ``untyped`` ones touch no tensor.

    ``time_share`` is empty unless a profile was given.  ``reformats`` are layers that only move or
    convert.  ``weighted`` names every convolution and matrix product with its type.
    ``source`` says who described the engine: the inspector, or the builder's log.
    """

    layers: int
    by_precision: Mapping[str, int]
    time_share: Mapping[str, float]
    reformats: tuple[str, ...]
    reformat_time_share: float | None
    convolutions: Mapping[str, str]
    products: Mapping[str, str]
    source: str

    @property
    def weighted(self) -> dict[str, str]:
        return {**self.convolutions, **self.products}

    @property
    def in_float(self) -> tuple[str, ...]:
        """Layers with weights that do not compute on integers."""
        return tuple(name for name, kind in self.weighted.items() if not kind.startswith("int"))

    def share(self, precision: str) -> float:
        """Share of the layers, in [0, 1]."""
        return self.by_precision.get(precision, 0) / self.layers if self.layers else 0.0

    def to_dict(self) -> dict[str, Any]:
        return {**self.__dict__, "reformats": list(self.reformats)}

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> PrecisionSummary:
        return cls(**{**data, "reformats": tuple(data["reformats"])})


def summarize(
    layers: Sequence[Layer], source: str, times_us: Mapping[str, float] | None = None
) -> PrecisionSummary:
    """Count ``layers``, and weigh them by ``times_us`` (per layer name) where it is given."""
    total = sum(times_us.get(layer.name, 0.0) for layer in layers) if times_us else 0.0
    counts: dict[str, int] = {}
    shares: dict[str, float] = {}
    moved = 0.0
    for layer in layers:
        name = layer.precision or "untyped"
        counts[name] = counts.get(name, 0) + 1
        if times_us and total > 0:
            share = times_us.get(layer.name, 0.0) / total
            shares[name] = shares.get(name, 0.0) + share
            moved += share if layer.kind == "reformat" else 0.0
    return PrecisionSummary(
        layers=len(layers),
        by_precision=counts,
        time_share=shares,
        reformats=tuple(layer.name for layer in layers if layer.kind == "reformat"),
        reformat_time_share=moved if total > 0 else None,
        convolutions=_named(layers, "convolution"),
        products=_named(layers, "product"),
        source=source,
    )


def require_precision(
    summary: PrecisionSummary, model: str, precision: str, *, every: bool = False
) -> None:
    """Pass when convolutions compute in ``precision``: one, or ``every`` one.

    Matrix products count in a network without convolutions.

    Raises:
        VerificationError: None does (or not every one), or the engine does not say; names them.
    """
    judged = summary.convolutions or summary.products
    if not judged:
        raise VerificationError(
            f"{model}: {precision} was asked for and none of the engine's {summary.layers} layers "
            "is a convolution or a matrix product as far as TensorRT says, so nothing is proved; "
            "ask for another precision, or look at the layers"
        )
    others = [f"{name} ({kind or 'unknown'})" for name, kind in judged.items() if kind != precision]
    if len(others) == len(judged) or (every and others):
        kind = "convolutions" if summary.convolutions else "matrix products"
        listed = ", ".join(others[:8]) + (", ..." if len(others) > 8 else "")
        raise VerificationError(
            f"{model}: {precision} was asked for and {len(others)} of {len(judged)} {kind} compute "
            f"in another type: {listed}; {_ADVICE.get(precision, _ADVICE[''])}"
        )


def require_int8(summary: PrecisionSummary, model: str, *, every: bool = False) -> None:
    """``require_precision`` for int8.

    Raises:
        VerificationError: As there.
    """
    require_precision(summary, model, "int8", every=every)


def _named(layers: Sequence[Layer], kind: str) -> dict[str, str]:
    named: dict[str, str] = {}
    for layer in layers:
        if layer.kind == kind:
            # Fused neighbours are nodes of the layer too; its own name starts with its own node.
            own = [node for node in layer.nodes if node in layer.name]
            name = (*own, *layer.nodes, layer.name)[0]
            # One ONNX node may become several layers; the widest of them is what it computes with.
            if named.get(name, "int8") == "int8":
                named[name] = layer.precision
    return named

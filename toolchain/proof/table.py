"""Proofs of several bundles as one table of results in Markdown."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import UTC, datetime
from pathlib import Path

from benchmarks import environment
from deploy.bundle import Bundle
from exporters.ort_fusion import CONVOLUTIONS
from exporters.ort_graph import KernelReport
from exporters.proof.ladder import SIMULATED
from toolchain.proof.proving import Proof
from toolchain.runs.artifacts import installed_versions
from toolchain.runs.markdown import bullets, each, hardware, markdown_table, versions

HEAD = (
    "network",
    "target",
    "rows",
    "decided as by the student, %",
    "answered as by the student, %",
    "top-1 of the student, %",
    "top-1 of the file, %",
    "difference, points",
    "convolutions on integers",
    "linear layers on integers",
    "bytes",
    "verdict",
)


def markdown(proved: Sequence[tuple[Bundle, Sequence[Proof]]], command: str) -> str:
    """The whole page: a row for each target of each bundle."""
    made = {"environment": environment.record(), "versions": installed_versions()}
    ladders = [proof.ladder for _, proofs in proved for proof in proofs]
    in_float = [
        proof.target
        for _, proofs in proved
        for proof in proofs
        if proof.target != "ort-cpu"
        and proof.ladder.stands[-1:]
        and proof.ladder.stands[-1].name == SIMULATED
    ]
    header = [
        *each("samples", (f"{ladder.rows:,} of {ladder.source}" for ladder in ladders)),
        "decided as by the student: rows to which the file, as its runtime executes it here, gives the class "
        "that the student gives in torch, the first and the last rung of the ladder",
        "answered as by the student: rows whose outputs are the student's, to 1e-5 of the largest, so that "
        "no value inside the network was rounded to another step",
        *each("rung", (f"{stand.name}, {stand.what}" for one in ladders for stand in one.stands)),
        "on integers: convolutions and linear layers (Gemm, MatMul with weights) that are integer kernels in "
        "the graph that ONNX Runtime executes, of all; the last linear layer gives the logits, in float",
        *each("no engine ran, so every Q/DQ pair was in float", in_float),
        f"hardware: {hardware(made)}",
        f"versions: {versions(made)}",
        f"measured: {datetime.now(UTC).date()}",
        f"written by: `{command}`",
    ]
    rows = [_row(bundle, proof) for bundle, proofs in proved for proof in proofs]
    parts = ["# Is it still the student? What was proved", bullets(header)]
    parts.append(markdown_table(HEAD, rows, left=2))
    failures = [
        f"{bundle.name}, {proof.target}: {failure}"
        for bundle, proofs in proved
        for proof in proofs
        for failure in proof.failures
    ]
    if failures:
        parts += ["## What failed", bullets(failures)]
    return "\n\n".join(parts) + "\n"


def _row(bundle: Bundle, proof: Proof) -> tuple[str, ...]:
    stands = proof.ladder.stands
    size = Path(bundle.model_path(proof.target)).stat().st_size
    if not stands:
        return (bundle.name, proof.target, "0", *["-"] * 7, f"{size:,}", "failed")
    first, last = stands[0], stands[-1]
    tops, difference = ["-", "-"], "-"
    if first.top1 is not None and last.top1 is not None:
        tops = [f"{first.top1:.2f}", f"{last.top1:.2f}"]
        difference = f"{last.top1 - first.top1:+.2f}"
    return (
        bundle.name,
        proof.target,
        f"{last.rows:,}",
        f"{100 * last.as_first / last.rows:.2f}",
        f"{100 * last.same / last.rows:.2f}",
        *tops,
        difference,
        *_on_integers(proof.kernels),
        f"{size:,}",
        "proved" if proof else "failed",
    )


def _on_integers(kernels: KernelReport | None) -> tuple[str, str]:
    """Convolutions and linear layers: how many of how many."""
    if kernels is None:
        return "-", "-"
    counted = []
    for convolutions in (True, False):
        integer, left = (
            sum((layer.op_type in CONVOLUTIONS) is convolutions for layer in layers)
            for layers in (kernels.integer, kernels.float)
        )
        counted.append(f"{integer} of {integer + left}")
    return counted[0], counted[1]

"""What linter, NVIDIA's importer and ONNX Runtime say of the INT8 graphs that other tools write.

    python -m toolchain.proof.peers [--depth 20] [--out docs/results/peers-lint.md]

The network is a built-in CIFAR ResNet with random weights, calibrated on noise: which patterns a tool
writes does not depend on them.  Quantized by ONNX Runtime's ``quantize_static`` in several settings, each
after its own pre-processing, by torchao's PT2E flow with its x86 and Arm quantizers where torchao is
installed, and by this project for each of its targets.
"""

from __future__ import annotations

import argparse
import copy
import importlib.metadata
import importlib.util
import io
import itertools
import logging
import shlex
import sys
import tempfile
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, redirect_stdout
from dataclasses import dataclass
from datetime import UTC, datetime
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch

from deploy.engines.importer import Import, import_onnx
from deploy.errors import CompressDeployError
from deploy.targets import TARGETS, Target
from deploy.whole_file import write_whole
from exporters.lint.finding import Finding
from exporters.lint.linting import lint
from exporters.onnx_from_torch import INPUT, export_onnx
from exporters.ort_graph import KernelReport, kernel_report
from toolchain.graph import trace
from toolchain.models.registry import build
from toolchain.quantization.attach import Quantization, attach_quantizers, calibrate
from toolchain.quantization.lowering import lower

SHAPE = (3, 32, 32)
PACKAGES = ("onnxruntime", "torchao", "torch", "onnx", "tensorrt-rtx")
# Settings of quantize_static by what a reader calls them; what is not named is the tool's default.
SETTINGS: dict[str, dict[str, Any]] = {
    "defaults": {},
    "QUInt8 activations, per channel": {"activation_type": "QUInt8", "per_channel": True},
    "QInt8, symmetric, per channel": {
        "per_channel": True,
        "extra_options": {"ActivationSymmetric": True, "WeightSymmetric": True},
    },
    "QInt8, symmetric, per channel, QuantizeBias=False": {
        "per_channel": True,
        "extra_options": {
            "ActivationSymmetric": True,
            "WeightSymmetric": True,
            "QuantizeBias": False,
        },
    },
    "QUInt8 activations and weights": {"activation_type": "QUInt8", "weight_type": "QUInt8"},
    "QInt16 activations": {"activation_type": "QInt16"},
}


@dataclass(frozen=True)
class Verdict:
    """One tool's graph as the three judges see it; ``missing`` says why there is no graph."""

    tool: str
    setting: str
    tensorrt: tuple[Finding, ...] = ()
    importer: Import | None = None
    ort_cpu: tuple[Finding, ...] = ()
    kernels: KernelReport | None = None
    missing: str = ""

    @property
    def agree(self) -> bool:
        """Whether the linter foretold both what the importer and what ONNX Runtime did."""
        assert self.importer is not None
        assert self.kernels is not None
        refused = any(finding.refused_by_importer for finding in self.tensorrt)
        said = {finding.node for finding in self.ort_cpu if finding.stays_float}
        left = {layer.name for layer in (*self.kernels.float, *self.kernels.other_float)}
        return refused is not self.importer.accepted and said == left


def verdicts(depth: int) -> list[Verdict]:
    """Every tool and setting, judged."""
    with torch.random.fork_rng(devices=[]), tempfile.TemporaryDirectory() as scratch:
        torch.manual_seed(0)
        network = build("cifar_resnet", depth=depth).eval()
        images_BCHW = torch.randn(8, *SHAPE)
        teacher = Path(scratch, "float.onnx")
        with _quiet():
            _torch_export(network, images_BCHW[:2], teacher)
        found = [
            _judged(
                "quantize_static",
                setting,
                partial(_quantize_static, teacher, images_BCHW.numpy(), options),
                Path(scratch, f"static{place}.onnx"),
            )
            for place, (setting, options) in enumerate(SETTINGS.items())
        ]
        for quantizer in ("x86_inductor", "arm_inductor"):
            if importlib.util.find_spec("torchao") is None:
                found.append(Verdict("torchao PT2E", quantizer, missing="torchao is not installed"))
                continue
            found.append(
                _judged(
                    "torchao PT2E",
                    quantizer,
                    partial(_pt2e, network, images_BCHW, quantizer),
                    Path(scratch, f"{quantizer}.onnx"),
                )
            )
        found += [
            _judged(
                "compress-deploy",
                f"target {target}",
                partial(_own, network, images_BCHW, target),
                Path(scratch, f"{target}.onnx"),
            )
            for target in TARGETS
        ]
    return found


def _judged(tool: str, setting: str, write: Callable[[Path], None], path: Path) -> Verdict:
    print(f"{tool}: {setting}", file=sys.stderr)
    with _quiet():
        write(path)
    return Verdict(
        tool,
        setting,
        tuple(lint(path, "tensorrt")),
        import_onnx(path),
        tuple(lint(path, "ort-cpu")),
        kernel_report(path),
    )


def _quantize_static(
    teacher: Path, images_BCHW: np.ndarray, options: dict[str, Any], out: Path
) -> None:
    from onnxruntime import quantization as ort
    from onnxruntime.quantization.shape_inference import quant_pre_process

    class Reader(ort.CalibrationDataReader):
        """Two images at a time, the batch that the network was exported with."""

        def __init__(self) -> None:
            self._feeds = ({INPUT: pair} for pair in np.split(images_BCHW, len(images_BCHW) // 2))

        def get_next(self) -> dict[str, np.ndarray] | None:
            return next(self._feeds, None)

    named = dict(options)
    for key in ("activation_type", "weight_type"):
        if key in named:
            named[key] = getattr(ort.QuantType, named[key])
    named["quant_format"] = getattr(ort.QuantFormat, named.get("quant_format", "QDQ"))
    prepared = out.with_suffix(".prepared.onnx")
    quant_pre_process(str(teacher), str(prepared), skip_symbolic_shape=True)
    ort.quantize_static(str(prepared), str(out), Reader(), **named)


def _own(network: torch.nn.Module, images_BCHW: torch.Tensor, target: Target, out: Path) -> None:
    student = trace(copy.deepcopy(network))
    attach_quantizers(student, Quantization())
    calibrate(student, iter([images_BCHW]))
    export_onnx(lower(student, target), images_BCHW[:2], out)


def _pt2e(network: torch.nn.Module, images_BCHW: torch.Tensor, quantizer: str, out: Path) -> None:
    from torchao.quantization.pt2e.quantize_pt2e import convert_pt2e, prepare_pt2e
    from torchao.quantization.pt2e.quantizer import arm_inductor_quantizer, x86_inductor_quantizer

    if quantizer == "x86_inductor":
        chosen = x86_inductor_quantizer.X86InductorQuantizer()
        chosen.set_global(x86_inductor_quantizer.get_default_x86_inductor_quantization_config())
    else:
        chosen = arm_inductor_quantizer.ArmInductorQuantizer()
        chosen.set_global(arm_inductor_quantizer.get_default_arm_inductor_quantization_config())
    example = images_BCHW[:2]
    prepared = prepare_pt2e(torch.export.export(network, (example,)).module(), chosen)
    for pair_BCHW in images_BCHW.split(2):
        prepared(pair_BCHW)
    _torch_export(convert_pt2e(prepared), example, out)


def _torch_export(network: torch.nn.Module, example: torch.Tensor, out: Path) -> None:
    """As a user of torch alone does it, with the exporter's own optimizations."""
    torch.onnx.export(
        network, (example,), str(out), dynamo=True, external_data=False, input_names=[INPUT]
    )


@contextmanager
def _quiet() -> Iterator[None]:
    """Keep the tools' own notes off the terminal; their errors arrive as exceptions."""
    disabled = logging.root.manager.disable
    logging.disable(logging.WARNING)
    try:
        with warnings.catch_warnings(), redirect_stdout(io.StringIO()):
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.disable(disabled)


def markdown(found: Sequence[Verdict], depth: int, command: str) -> str:
    """The whole page."""
    lines = [
        "# What other tools' INT8 graphs are to the linter, to NVIDIA's importer and to ONNX Runtime",
        "",
        f"- network: CIFAR ResNet-{depth}, random weights, exported by torch.onnx with its defaults, "
        "calibrated on 8 images of noise",
        "- *importer*: NVIDIA's ONNX importer of TensorRT-RTX, on a processor; no GPU is involved",
        "- *integer layers*: convolutions, Gemm and MatMul that are integer kernels in the graph that "
        "ONNX Runtime executes (x86-64), of all",
        "- *foretold*: whether the linter, which runs nothing, said both",
        f"- versions: {', '.join(f'{name} {_version(name)}' for name in PACKAGES)}",
        f"- date: {datetime.now(UTC).date()}",
        f"- written by: `{command}`",
        "",
        "| tool | setting | linter, target tensorrt | importer | linter, target ort-cpu "
        "| integer layers | foretold |",
        "| --- | --- | --- | --- | --- | ---: | --- |",
    ]
    lines += [_row(verdict) for verdict in found]
    return "\n".join([*lines, ""])


def _row(verdict: Verdict) -> str:
    if verdict.importer is None or verdict.kernels is None:
        return f"| {verdict.tool} | {verdict.setting} | {verdict.missing} | | | | |"
    importer = "accepts"
    if not verdict.importer.accepted:
        importer = f"refuses: {_short(verdict.importer.problems[0].description)}"
    integer, left = len(verdict.kernels.integer), len(verdict.kernels.float)
    return (
        f"| {verdict.tool} | {verdict.setting} | {_rules(verdict.tensorrt)} | {importer} "
        f"| {_rules(verdict.ort_cpu)} | {integer} of {integer + left} "
        f"| {'yes' if verdict.agree else '**no**'} |"
    )


def _rules(findings: Sequence[Finding]) -> str:
    """Rules that found something worse than a note, with their counts, errors in bold."""
    told = [finding for finding in findings if finding.level != "note"]
    parts = []
    for (rule, level), group in itertools.groupby(told, lambda one: (one.rule, one.level)):
        text = f"{rule} × {len(list(group))}"
        parts.append(f"**{text}**" if level == "error" else text)
    return "; ".join(parts) or "nothing"


def _short(text: str) -> str:
    """What an importer said, without the name of its source and in one cell."""
    text = text.removeprefix("Assertion failed: ").replace("|", "/")
    text = text.split("Please set")[0].split(" In checkType")[0].strip()
    return text if len(text) <= 140 else f"{text[:137]}..."


def _version(package: str) -> str:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return "not installed"


def main(argv: Sequence[str] | None = None) -> int:
    """Run, print, write; the exit status is 1 when the linter was wrong about a graph."""
    parser = argparse.ArgumentParser(
        prog="python -m toolchain.proof.peers",
        description="What the linter says of other tools' INT8 graphs, and whether it is right.",
    )
    parser.add_argument("--depth", type=int, default=20, help="of the CIFAR ResNet (default 20)")
    parser.add_argument("--out", type=Path, help="write a .md file too")
    arguments = list(sys.argv[1:] if argv is None else argv)
    options = parser.parse_args(arguments)
    try:
        found = verdicts(options.depth)
        command = shlex.join(["python", "-m", "toolchain.proof.peers", *arguments])
        text = markdown(found, options.depth, command)
        print(text)
        if options.out is not None:
            write_whole(options.out, text, "the page", "give another --out")
    except CompressDeployError as error:
        print(f"peers: {error}", file=sys.stderr)
        return 1
    return int(not all(verdict.agree for verdict in found if not verdict.missing))


if __name__ == "__main__":
    sys.exit(main())

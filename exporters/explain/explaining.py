"""Why is it not faster?  The kernels of a file by time, each with its cause.

What ONNX Runtime executes is timed by its profiler, matched with the layers of the file, and held against
what this machine can do at best, all in one run.
"""

from __future__ import annotations

import tempfile
from collections import defaultdict
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from benchmarks.timing.layer_times import LayerTime, Profile, profile_layers
from deploy.sessions.session import Feeds
from exporters import onnx_file
from exporters.blame.graph_layers import GraphLayers
from exporters.explain.causes import Cause, Facts, cause
from exporters.explain.machine_limits import Machine, measure_machine
from exporters.ort_fusion import CONVOLUTIONS, WEIGHTED
from exporters.ort_graph import is_integer, kernel_report

if TYPE_CHECKING:
    from onnx import ModelProto, NodeProto

Progress = Callable[[str, int, int], None]


@dataclass(frozen=True)
class Explained:
    """One kernel with its cause; ``layer`` is the module of the network that it belongs to."""

    layer: str
    facts: Facts
    cause: Cause

    def to_dict(self) -> dict[str, Any]:
        return {"layer": self.layer, **asdict(self.facts), "cause": self.cause.to_dict()}


@dataclass(frozen=True)
class Explanation:
    """All kernels of one file on one batch, in the order of execution."""

    kernels: tuple[Explained, ...]
    profile: Profile
    machine: Machine
    batch: int

    @property
    def call_us(self) -> float:
        return self.profile.call_us

    @property
    def macs(self) -> int:
        return sum(kernel.facts.macs for kernel in self.kernels)

    @property
    def launches_us(self) -> float:
        """What the call and its kernels cost before anything is computed."""
        return self.machine.call_us + sum(
            self.machine.launch_us(kernel.facts.integer, kernel.facts.macs > 0)
            for kernel in self.kernels
        )

    def by_time(self) -> list[Explained]:
        return sorted(self.kernels, key=lambda kernel: -kernel.facts.time_us)

    def by_cause(self) -> list[tuple[str, float, int]]:
        """(kind, share of the kernels' time, how many), the largest share first."""
        shares: dict[str, list[float]] = defaultdict(list)
        for kernel in self.kernels:
            shares[kernel.cause.kind].append(kernel.facts.share)
        return sorted(
            ((kind, sum(each), len(each)) for kind, each in shares.items()), key=lambda e: -e[1]
        )

    def layer_us(self) -> dict[str, float]:
        """Microseconds of each layer: of all kernels that belong to it."""
        times: dict[str, float] = defaultdict(float)
        for kernel in self.kernels:
            times[kernel.layer] += kernel.facts.time_us
        return dict(times)

    def to_dict(self) -> dict[str, Any]:
        return {
            "batch": self.batch,
            "threads": self.profile.threads,
            "call_us": self.call_us,
            "profiled_call_us": self.profile.profiled_call_us,
            "calls": self.profile.calls,
            "macs": self.macs,
            "kernels": [kernel.to_dict() for kernel in self.by_time()],
            "causes": [
                {"kind": kind, "share": share, "kernels": count}
                for kind, share, count in self.by_cause()
            ],
            "machine": self.machine.to_dict(),
        }


def explain(
    path: Path,
    feeds: Feeds,
    *,
    threads: int = 1,
    machine: Machine | None = None,
    at_least: int = 100,
    at_least_s: float = 1.0,
    progress: Progress | None = None,
) -> Explanation:
    """Explain the time of ``path`` on ``feeds``; ``machine`` is measured where it is not given.

    Raises:
        StorageError: There is no such file, or it is not a whole model.
        DeviceError: ONNX Runtime cannot load it, or refuses the feeds.
        MissingDependency: onnx or onnxruntime is not installed.
    """
    model = onnx_file.load(path)
    layers = GraphLayers(model)
    quantized = any(node.op_type == "QuantizeLinear" for node in model.graph.node)
    reasons = {}
    if quantized:
        report = kernel_report(path, threads)
        reasons = {layer.name: layer.reason for layer in (*report.float, *report.other_float)}
    machine = machine or measure_machine(threads)
    with tempfile.TemporaryDirectory() as scratch:
        tagged = Path(scratch, path.name)
        sources = _tag(model, tagged)
        profile = profile_layers(
            tagged,
            feeds,
            threads=threads,
            at_least=at_least,
            at_least_s=at_least_s,
            progress=None if progress is None else _named(progress, path.stem),
        )
    found = []
    claimed: set[str] = set()
    for time in profile.layers:
        node = sources.get(time.name)
        weighted = None if node is None else _weighted(node, time, layers, claimed)
        facts = _facts(time, node, weighted, layers, reasons)
        layer = facts.name if node is None else layers.of(weighted or node)
        found.append(Explained(layer, facts, cause(facts, machine)))
    batch = len(next(iter(feeds.values())))
    return Explanation(tuple(found), profile, machine, batch)


def _named(progress: Progress, name: str) -> Callable[[int, int], None]:
    return lambda done, total: progress(name, done, total)


def _tag(model: ModelProto, path: Path) -> dict[str, NodeProto]:
    """A copy whose nodes are numbered, and the node of each name that a kernel may get from it."""
    import onnx

    copy = onnx.ModelProto()
    copy.CopyFrom(model)
    sources: dict[str, NodeProto] = {}
    for index, (node, original) in enumerate(zip(copy.graph.node, model.graph.node, strict=True)):
        node.name = f"source{index}"
        sources[node.name] = original
        for output in original.output:  # blocked kernels are named after what they write
            sources.setdefault(output, original)
    onnx.save(copy, str(path))
    return sources


def _facts(
    time: LayerTime,
    node: NodeProto | None,
    weighted: NodeProto | None,
    layers: GraphLayers,
    reasons: dict[str, str],
) -> Facts:
    moved = time.activation_bytes + time.output_bytes
    integer = is_integer(time.kernel)
    if node is None or time.op_type in ("Transpose", "ReorderInput", "ReorderOutput"):
        return Facts(
            time.name, time.op_type, time.kernel, time.time_us, time.share,
            bytes=moved, integer=integer, inserted=True,
        )  # fmt: skip
    name = str(node.name or node.output[0])
    macs, channels, groups, weight_bytes = 0, None, 1, 0
    if weighted is not None:
        macs, channels, groups, weight_bytes = _work(weighted, time, layers, integer)
    return Facts(
        name, time.op_type, time.kernel, time.time_us, time.share, macs,
        moved + weight_bytes, channels, groups, integer, weighted is not None and layers.first(weighted),
        False, reasons.get(name, ""),
    )  # fmt: skip


def _weighted(
    node: NodeProto, time: LayerTime, layers: GraphLayers, claimed: set[str]
) -> NodeProto | None:
    """The node with weights that the kernel computes.

    A convolution that took in an addition and a ReLU is named after what comes last; then it is the
    nearest one above whose weights have the kernel's shape, which may be padded to whole blocks of channels,
    and which no other kernel computes.
    """
    if time.op_type not in WEIGHTED:
        return None
    shape = time.inputs[1].shape if len(time.inputs) > 1 else ()
    waiting = [node]
    while waiting:
        each = waiting.pop(0)
        if each.op_type in WEIGHTED:
            value, _ = layers.weights_of(each)
            own = layers.graph.array(value).shape if value else ()
            fits = not shape or (
                len(own) == len(shape)
                and own[2:] == shape[2:]
                and all(mine <= theirs for mine, theirs in zip(own[:2], shape[:2], strict=True))
            )
            if each is node or (fits and each.output[0] not in claimed):
                claimed.add(each.output[0])
                return each
            continue
        makers = (layers.graph.producer.get(value) for value in each.input)
        waiting += [maker for maker in makers if maker is not None]
    return None


def _work(
    node: NodeProto, time: LayerTime, layers: GraphLayers, integer: bool
) -> tuple[int, tuple[int, int] | None, int, int]:
    """MACs, channels of a group, groups and bytes of the weights."""
    value, _ = layers.weights_of(node)
    if not value or not time.outputs:
        return 0, None, 1, 0
    shape = layers.graph.array(value).shape
    size = int(np.prod(shape))
    weight_bytes = size * (1 if integer else 4)
    outputs = int(np.prod(time.outputs[0].shape))
    if node.op_type not in CONVOLUTIONS:
        transposed = any(a.name == "transB" and a.i for a in node.attribute)
        inputs, width = (shape[-1], shape[-2]) if transposed else (shape[-2], shape[-1])
        return outputs * inputs, (inputs, width), 1, weight_bytes
    groups = next((a.i for a in node.attribute if a.name == "group"), 1)
    if node.op_type == "ConvTranspose":
        inputs = int(np.prod(time.inputs[0].shape)) if time.inputs else 0
        return inputs * size // shape[0], (shape[0] // groups, shape[1]), groups, weight_bytes
    channels = shape[1], shape[0] // groups
    # A blocked float kernel writes whole blocks of channels, an integer one has them last.
    written = shape[0] if integer else time.outputs[0].shape[1]
    return outputs // written * size, channels, groups, weight_bytes

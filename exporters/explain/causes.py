"""Why a layer takes the time that it takes: the first cause that can be proved, and what to try next.

float leftover   a quantized file, and ONNX Runtime computes this layer in float (its graph says so)
reformat         moves or converts values, computes nothing
launch-bound     hardly more time than the same kernel takes for next to nothing
memory-bound     its bytes at this machine's bandwidth are most of its time
compute-bound    its MACs at this machine's best rate are most of its time
few inputs       far from that rate, reading an image whose channels are mostly padding to the kernel
misaligned       far from that rate, and a width is no multiple of the kernels' block
depthwise        far from that rate, and each value read meets few weights
too small        far from that rate, with nothing of the above
elementwise      no MACs and no bound reached
"""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any, Literal

from exporters.explain.machine_limits import Machine

Kind = Literal[
    "float leftover",
    "reformat",
    "launch-bound",
    "memory-bound",
    "compute-bound",
    "few inputs",
    "misaligned",
    "depthwise",
    "too small",
    "elementwise",
]
# Of its time: a bound that explains this much is the cause.
MOST = 0.5
# Times what the same kernel takes for next to nothing: within, a layer is mostly launch.
FEW_LAUNCHES = 2.0
# ONNX Runtime's kernels work on blocks of so many channels.
BLOCK = {True: 16, False: 8}
MOVES = frozenset(
    {
        "Transpose",
        "ReorderInput",
        "ReorderOutput",
        "QuantizeLinear",
        "DequantizeLinear",
        "Cast",
        "Reshape",
        "Flatten",
        "Slice",
        "Pad",
        "Squeeze",
        "Unsqueeze",
        "Concat",
    }
)
REMEDIES: dict[str, str] = {
    "float leftover": "export again for this target, or lint the file: every input and the output need "
    "a Q/DQ pair",
    "reformat": "fewer changes between integers and float, or of layout: quantize what stands between",
    "launch-bound": "fewer layers: let whole residual branches go (structure.branches), or raise the "
    "batch; narrower layers will not be faster",
    "memory-bound": "move fewer bytes: smaller maps earlier, INT8 in place of float; fewer MACs will "
    "not help",
    "compute-bound": "only fewer MACs help: prune here",
    "few inputs": "keep this layer in float (keep_float) where the teacher's takes less time",
    "misaligned": "widths in multiples of the block (structure.align), even if that is wider",
    "depthwise": "an ordinary convolution of fewer channels is often as fast, and more accurate",
    "too small": "fewer and wider layers in place of many narrow ones, fewer threads, or a larger batch",
    "elementwise": "additions go with whole residual branches (structure.branches); pool earlier",
}


@dataclass(frozen=True)
class Facts:
    """What is known of one kernel.

    Attributes:
        time_us: Of one call; ``share`` of all kernels, in [0, 1].
        macs: Multiplications of one call; ``bytes`` read and written, weights included.
        channels: Input and output channels of one group, or None where that means nothing.
        integer: Whether it computes with integers.
        first: Whether it reads the input of the network.
        inserted: Whether ONNX Runtime put it there itself.
        float_reason: Why it is in float though the file is quantized, or nothing.
    """

    name: str
    op_type: str
    kernel: str
    time_us: float
    share: float
    macs: int = 0
    bytes: int = 0
    channels: tuple[int, int] | None = None
    groups: int = 1
    integer: bool = False
    first: bool = False
    inserted: bool = False
    float_reason: str = ""


@dataclass(frozen=True)
class Cause:
    """Why, in numbers, and what to try."""

    kind: Kind
    why: str

    @property
    def remedy(self) -> str:
        return REMEDIES[self.kind]

    def to_dict(self) -> dict[str, Any]:
        return {**asdict(self), "remedy": self.remedy}


def cause(facts: Facts, machine: Machine) -> Cause:
    """The first cause of the module's list that the numbers prove."""
    if facts.float_reason:
        return Cause("float leftover", facts.float_reason)
    if facts.kernel in MOVES or facts.inserted:
        by = "ONNX Runtime put it in" if facts.inserted else "computes nothing"
        return Cause("reformat", f"{by}, {_size(facts.bytes)} moved")
    copy_us = machine.copy_us(facts.bytes)
    least_us = 1e6 * facts.macs / machine.macs_per_s(facts.integer)
    launch_us = machine.launch_us(facts.integer, weighted=facts.macs > 0)
    if facts.time_us <= FEW_LAUNCHES * launch_us and least_us < MOST * facts.time_us:
        return Cause("launch-bound", f"the smallest such kernel takes {launch_us:.1f} µs here")
    if copy_us >= MOST * facts.time_us and copy_us >= least_us:
        return Cause(
            "memory-bound",
            f"copying its {_size(facts.bytes)} takes {copy_us:.1f} µs here",
        )
    if not facts.macs:
        return Cause("elementwise", f"{_size(facts.bytes)} and no MACs")
    share = least_us / facts.time_us if facts.time_us else 1.0
    rate = f"{100 * min(share, 1):.0f} % of peak"
    if share >= MOST:
        return Cause("compute-bound", rate)
    return _far_from_the_rate(facts, rate)


def _far_from_the_rate(facts: Facts, rate: str) -> Cause:
    block = BLOCK[facts.integer]
    if facts.channels is not None:
        inputs, outputs = facts.channels
        if facts.groups > 1 and inputs < block:
            return Cause("depthwise", f"{rate}, {facts.groups} groups of {inputs}→{outputs}")
        if inputs <= block // 2 and facts.first:
            return Cause("few inputs", f"{rate}, {inputs} channels in blocks of {block}")
        odd = [width for width in (inputs, outputs) if width % block]
        if odd:
            return Cause("misaligned", f"{rate}, {inputs}→{outputs} in blocks of {block}")
    return Cause("too small", f"{rate}, {facts.macs / 1e6:.2f} million MACs")


def _size(size_bytes: int) -> str:
    return (
        f"{size_bytes / 1024:.1f} KiB" if size_bytes < 1 << 20 else f"{size_bytes / 2**20:.1f} MiB"
    )

"""MACs and parameters of a network, measured once, and of every cut of it, computed without building it.

One forward pass at batch 1 records what each module works on; from then on the cost of a candidate is
arithmetic on widths, and equals what measuring the cut network gives.
MACs count the multiplications of convolutions and linear layers; normalisation, bias and activation
functions are not counted, as usual.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any, Literal, Protocol

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.modules.conv import _ConvNd, _ConvTransposeNd

from toolchain.structure.plan import Branch, Group

Kind = Literal["conv", "depthwise", "transposed", "linear", "norm", "other"]
Measure = Literal["macs", "parameters", "latency"]


@dataclass(frozen=True)
class Layer:
    """What one module works on, per sample.

    Attributes:
        kind: ``depthwise`` is a convolution whose output channel sees only its own input channel.
        in_channels: Positions of the input axis; 0 where the module has none of its own.
        out_channels: Positions of the output axis.
        groups: Groups of a convolution.
        kernel: Kernel size per spatial axis.
        stride: Step per spatial axis.
        padding: Zeros added on each side, per spatial axis.
        input_size: Spatial size of its input, (1, 1) style; empty where there is none.
        output_size: Likewise of its output.
        positions: How often each weight is used per sample, over all calls.
        bias: Whether each output has a bias.
        fixed_parameters: Parameters that do not change with widths.
    """

    kind: Kind
    in_channels: int = 0
    out_channels: int = 0
    groups: int = 1
    kernel: tuple[int, ...] = ()
    stride: tuple[int, ...] = ()
    padding: tuple[int, ...] = ()
    input_size: tuple[int, ...] = ()
    output_size: tuple[int, ...] = ()
    positions: int = 0
    bias: bool = False
    fixed_parameters: int = 0

    def weights(self, in_channels: int, out_channels: int) -> int:
        """How many weights the module has at these widths."""
        if self.kind in ("norm", "other"):
            return 0
        if self.kind == "depthwise":
            return out_channels * math.prod(self.kernel)
        return out_channels * in_channels // self.groups * math.prod(self.kernel)

    def macs(self, in_channels: int, out_channels: int) -> int:
        return self.positions * self.weights(in_channels, out_channels)

    def parameters(self, in_channels: int, out_channels: int) -> int:
        if self.kind == "norm":  # one scale and one shift per channel
            return 2 * out_channels if self.bias else 0
        weights = self.weights(in_channels, out_channels)
        return self.fixed_parameters + weights + (out_channels if self.bias else 0)


@dataclass(frozen=True)
class Cost:
    """What every module of a network costs, by its path."""

    layers: Mapping[str, Layer] = field(default_factory=dict)

    @property
    def macs(self) -> int:
        return sum(
            layer.macs(layer.in_channels, layer.out_channels) for layer in self.layers.values()
        )

    @property
    def parameters(self) -> int:
        return sum(
            layer.parameters(layer.in_channels, layer.out_channels)
            for layer in self.layers.values()
        )


@contextmanager
def evaluating(network: nn.Module) -> Iterator[None]:
    """The network in evaluation mode without gradients; every module's own mode comes back after."""
    modes = [(module, module.training) for module in network.modules()]
    network.eval()
    try:
        with torch.no_grad():
            yield
    finally:
        for module, mode in modes:
            module.training = mode


def measure(network: nn.Module, input_shape: Sequence[int]) -> Cost:
    """What every module of ``network`` costs for one sample of ``input_shape`` (without batch)."""
    seen: dict[str, list[tuple[Tensor, Tensor]]] = {}

    def recorder(name: str) -> Any:
        def record(module: nn.Module, inputs: tuple[Any, ...], output: Any) -> None:
            if inputs and isinstance(inputs[0], Tensor) and isinstance(output, Tensor):
                seen.setdefault(name, []).append((inputs[0], output))

        return record

    handles = [
        module.register_forward_hook(recorder(name))
        for name, module in network.named_modules()
        if isinstance(module, _COUNTED)
    ]
    sample = next(network.parameters(), torch.zeros(()))
    example = torch.zeros(1, *input_shape, dtype=sample.dtype, device=sample.device)
    try:
        with evaluating(network):
            network(example)
    finally:
        for handle in handles:
            handle.remove()
    layers = {}
    for name, module in network.named_modules():
        if "parametrizations" in name.split("."):
            continue  # counted with the tensor that it stands for
        layer = _layer(module, seen.get(name, []))
        if layer is not None:
            layers[name] = layer
    return Cost(layers)


def network_macs(network: nn.Module, input_shape: Sequence[int]) -> int:
    """Multiply-accumulates of one sample of ``input_shape`` (without batch)."""
    return measure(network, input_shape).macs


def network_parameters(network: nn.Module) -> int:
    """Numbers that the network stores as parameters, views and their scales not counted twice."""
    layers = (
        _layer(module, [])
        for name, module in network.named_modules()
        if "parametrizations" not in name.split(".")
    )
    return sum(
        layer.parameters(layer.in_channels, layer.out_channels)
        for layer in layers
        if layer is not None
    )


_COUNTED = (_ConvNd, nn.Linear, _BatchNorm)


def _layer(module: nn.Module, calls: Sequence[tuple[Tensor, Tensor]]) -> Layer | None:
    if isinstance(module, _ConvNd):
        depthwise = module.groups > 1 and module.groups == module.in_channels == module.out_channels
        transposed = isinstance(module, _ConvTransposeNd)
        padding = module.padding
        if isinstance(padding, str):  # "same" and "valid"
            same = tuple(size // 2 for size in module.kernel_size)
            padding = same if padding == "same" else (0,) * len(module.kernel_size)
        return Layer(
            kind="depthwise" if depthwise else "transposed" if transposed else "conv",
            in_channels=module.in_channels,
            out_channels=module.out_channels,
            groups=module.groups,
            kernel=tuple(module.kernel_size),
            stride=tuple(module.stride),
            padding=tuple(padding),
            input_size=tuple(calls[0][0].shape[2:]) if calls else (),
            output_size=tuple(calls[0][1].shape[2:]) if calls else (),
            positions=sum(math.prod(call[0 if transposed else 1].shape[2:]) for call in calls),
            bias=module.bias is not None,
        )
    if isinstance(module, nn.Linear):
        return Layer(
            kind="linear",
            in_channels=module.in_features,
            out_channels=module.out_features,
            positions=sum(output.numel() // module.out_features for _, output in calls),
            bias=module.bias is not None,
        )
    if isinstance(module, _BatchNorm):
        return Layer(kind="norm", out_channels=module.num_features, bias=module.affine)
    own = dict(module.named_parameters(recurse=False))
    for name, parametrization in getattr(module, "parametrizations", {}).items():
        own[name] = parametrization.original
    fixed = sum(parameter.numel() for parameter in own.values())
    return Layer(kind="other", fixed_parameters=fixed) if fixed else None


class Times(Protocol):
    """Measured times of layers on the target."""

    def time_us(
        self,
        layer: Layer,
        in_channels: int,
        out_channels: int,
        adds: int = 0,
        precision: Literal["int8", "float"] = "int8",
    ) -> float:
        """Microseconds of a layer at these widths, and of the residual adds right after it."""

    def widths(self, channels: int) -> tuple[int, ...]:
        """The widths, ascending, that are worth considering for a group of so many channels."""


class CostModel:
    """The cost of any cut of one network, from the widths of its groups.

    ``kept`` maps group names to channels that stay (a group not named is whole); ``removed`` are
    branches that are gone.
    """

    def __init__(
        self,
        cost: Cost,
        groups: Iterable[Group],
        branches: Iterable[Branch] = (),
        latency: Times | None = None,
    ) -> None:
        self.cost = cost
        self.groups = {group.name: group for group in groups}
        self.latency = latency
        self._parts: dict[str, list[tuple[str, str, int]]] = {}
        for group in self.groups.values():
            for part in group.slices:
                if part.module in cost.layers and part.index:
                    entry = (group.name, part.axis, len(part.index[0]))
                    self._parts.setdefault(part.module, []).append(entry)
        self._whole: dict[Measure, float] = {}
        self._adds: dict[str, int] = {}  # the add after a branch is charged to its last layer
        for branch in branches:
            weighted = [
                name
                for name in branch.modules
                if name in cost.layers and cost.layers[name].positions
            ]
            if weighted:
                self._adds[weighted[-1]] = self._adds.get(weighted[-1], 0) + 1

    def modules_of(self, group: Group) -> tuple[str, ...]:
        """The modules whose cost depends on the width of ``group``."""
        names = dict.fromkeys(part.module for part in group.slices)
        return tuple(name for name in names if name in self.cost.layers)

    def widths(self, module: str, kept: Mapping[str, int]) -> tuple[int, int]:
        """Input and output positions that ``module`` has left."""
        layer = self.cost.layers[module]
        in_, out = layer.in_channels, layer.out_channels
        for name, axis, positions in self._parts.get(module, ()):
            gone = self.groups[name].channels - kept.get(name, self.groups[name].channels)
            if axis == "out":
                out -= gone * positions
            else:
                in_ -= gone * positions
        return in_, out

    def of(
        self,
        measure: Measure,
        kept: Mapping[str, int],
        removed: Collection[Branch] = (),
        modules: Iterable[str] | None = None,
    ) -> float:
        """MACs, parameters or microseconds of the cut network, or of these modules of it only."""
        gone = {name for branch in removed for name in branch.modules}
        total = 0.0
        for module in self.cost.layers if modules is None else modules:
            if module in gone:
                continue
            layer = self.cost.layers[module]
            in_, out = self.widths(module, kept)
            if measure == "macs":
                total += layer.macs(in_, out)
            elif measure == "parameters":
                total += layer.parameters(in_, out)
            elif self.latency is not None:
                total += self.latency.time_us(layer, in_, out, self._adds.get(module, 0))
            else:
                raise ValueError("latency is asked of a cost model without a table of times")
        return total

    def macs(self, kept: Mapping[str, int], removed: Collection[Branch] = ()) -> int:
        return int(self.of("macs", kept, removed))

    def parameters(self, kept: Mapping[str, int], removed: Collection[Branch] = ()) -> int:
        return int(self.of("parameters", kept, removed))

    def share(
        self, measure: Measure, kept: Mapping[str, int], removed: Collection[Branch] = ()
    ) -> float:
        """What is left of a cost, as a share of the whole network's; of time, the float network's."""
        if measure not in self._whole:
            self._whole[measure] = self.float_us() if measure == "latency" else self.of(measure, {})
        whole = self._whole[measure]
        return self.of(measure, kept, removed) / whole if whole else 1.0

    def float_us(self) -> float:
        """Microseconds of the whole network's layers before anything is quantized.

        Raises:
            ValueError: There is no table of times.
        """
        if self.latency is None:
            raise ValueError("latency is asked of a cost model without a table of times")
        return sum(
            self.latency.time_us(
                layer, layer.in_channels, layer.out_channels, self._adds.get(module, 0), "float"
            )
            for module, layer in self.cost.layers.items()
        )

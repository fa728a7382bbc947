"""Where quantizers go in a traced network, so that a target finds integer kernels for every layer.

A quantizer stands on a *value*, once, where it is made: every reader then sees the same grid. Values on
the grid are: the network's input; what every quantized layer computes (after its batch norm and ReLU);
both inputs of an add, a concatenation or a pooling. Operations that only move values (max pooling,
flatten, slice-and-pad) keep the grid and get none of their own. The network's output stays float, and so
does what a linear layer computes of tokens, unless one of these reads it: its kernel gives floats, which
is what norms, attention and GELU work on (without 24 such grids a ViT of 6 blocks is 1.2 times faster).
"""

from __future__ import annotations

import fnmatch
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass
from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch import fx, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.modules.conv import _ConvNd

from deploy.errors import ConfigError
from deploy.targets import WIDE
from toolchain import graph
from toolchain.quantization.activations import ActivationQuantizer, Nonlinearity, observing
from toolchain.quantization.attached import (
    attach_views,
    latent_parameter,
    weight_view,
    weighted,
)
from toolchain.quantization.weights import QuantizerKind, WeightQuantizer
from toolchain.training.evaluation import eval_mode

AVERAGES = frozenset({F.adaptive_avg_pool2d, F.avg_pool2d, torch.mean, "mean"})
AVERAGE_MODULES = (nn.AdaptiveAvgPool2d, nn.AvgPool2d)
PREFIX = "quantizers"


@dataclass(frozen=True)
class Quantization:
    """How a network is quantized; stored in its spec.

    Attributes:
        bits: Of weights, 2 to 8.
        edge_bits: Of the first and the last layer's weights.
        activation_bits: Of activations; 8 is what the targets' kernels take.
        unsigned_steps: The most steps above zero of a value that is never below: what all targets of
            the student can store.
        kind: Learned step sizes or min-max.
        ignore: Layers left in float, by path or glob, or ``first`` and ``last``.
    """

    bits: int = 8
    edge_bits: int = 8
    activation_bits: int = 8
    kind: QuantizerKind = "lsq"
    ignore: tuple[str, ...] = ()
    unsigned_steps: int = WIDE

    def to_json(self) -> dict[str, Any]:
        return asdict(self) | {"ignore": list(self.ignore)}

    @classmethod
    def from_json(cls, record: dict[str, Any]) -> Quantization:
        return cls(**{**record, "ignore": tuple(record["ignore"])})


def attach_quantizers(
    network: fx.GraphModule,
    quantization: Quantization,
    input_shape: Sequence[int] | None = None,
) -> None:
    """Put weight and activation quantizers into ``network``, in place and uncalibrated.

    Args:
        network: Traced.
        quantization: How.
        input_shape: Of one sample, without batch; None takes no layer for one on tokens.

    Raises:
        ConfigError: An ``ignore`` pattern matches no layer.
    """
    attach_views(network)
    names = [name for name, _ in weighted(network)]
    skipped = _matching(names, quantization.ignore)
    chosen = [name for name in names if name not in skipped]
    tokens = set() if input_shape is None else _on_tokens(network, input_shape)
    for name in chosen:
        module = network.get_submodule(name)
        view = weight_view(module)
        assert view is not None
        edge = name in (names[0], names[-1])
        channels = len(view.keep_O)
        view.quantizer = WeightQuantizer(
            channels, quantization.edge_bits if edge else quantization.bits, quantization.kind
        )
        view.quantizer.train(network.training)
    _insert(network, set(chosen), tokens, quantization)


def _on_tokens(network: fx.GraphModule, input_shape: Sequence[int]) -> set[str]:
    """Linear layers that work on more than one position of a sample."""
    found: set[str] = set()
    inner = {name: m for name, m in network.named_modules() if isinstance(m, nn.Linear)}
    if len(inner) < 2:  # a classifier
        return found

    def watch(name: str) -> Callable[[Any, Any, torch.Tensor], None]:
        def hook(module: Any, inputs: Any, output: torch.Tensor) -> None:
            if output.dim() > 2:
                found.add(name)

        return hook

    handles = [module.register_forward_hook(watch(name)) for name, module in inner.items()]
    sample = next(network.parameters())
    try:
        with eval_mode(network), torch.no_grad():
            network(torch.zeros(2, *input_shape, dtype=sample.dtype, device=sample.device))
    finally:
        for handle in handles:
            handle.remove()
    return found


def _matching(names: list[str], patterns: Iterable[str]) -> set[str]:
    matched: set[str] = set()
    for pattern in patterns:
        hits = fnmatch.filter(names, pattern)
        if not hits and pattern in ("first", "last"):
            hits = [names[0 if pattern == "first" else -1]]
        if not hits:
            raise ConfigError(
                f"keep_float: {pattern!r} matches no layer; accepted are first, last, and paths or "
                f"globs of {', '.join(names)}; correct or remove it"
            )
        matched.update(hits)
    return matched


def _chain_end(network: fx.GraphModule, node: fx.Node) -> fx.Node:
    """What a layer's kernel computes: the layer, then its batch norm, then its ReLU, where unshared."""
    end = node
    for wanted in (
        lambda n: isinstance(graph.module_of(network, n), _BatchNorm),
        lambda n: graph.is_relu(network, n) or graph.is_relu6(network, n),
    ):
        users = list(end.users)
        if len(users) == 1 and wanted(users[0]):
            end = users[0]
    return end


def _values(network: fx.GraphModule, chosen: set[str], tokens: set[str]) -> Iterator[fx.Node]:
    """Every node whose value goes on a grid, possibly more than once."""
    for node in network.graph.nodes:
        layer = graph.module_of(network, node)
        if isinstance(layer, _ConvNd | nn.Linear) and str(node.target) in chosen:
            yield node.all_input_nodes[0]
            end = _chain_end(network, node)
            if isinstance(layer, _ConvNd) or not (_only_output(end) or node.target in tokens):
                yield end
        elif graph.is_add(network, node):
            yield from node.all_input_nodes
            users = list(node.users)
            relu = len(users) == 1 and (
                graph.is_relu(network, users[0]) or graph.is_relu6(network, users[0])
            )
            yield users[0] if relu else node
        elif graph.calls(network, node, AVERAGES | graph.CONCAT, AVERAGE_MODULES):
            yield from node.all_input_nodes
            yield node


def _only_output(node: fx.Node) -> bool:
    return all(user.op == "output" for user in node.users)


def _absorbed(network: fx.GraphModule, node: fx.Node) -> Nonlinearity:
    if graph.is_relu6(network, node):
        return "relu6"
    return "relu" if graph.is_relu(network, node) else "none"


def _insert(
    network: fx.GraphModule, chosen: set[str], tokens: set[str], quantization: Quantization
) -> None:
    sites = dict.fromkeys(graph.origin(network, node) for node in _values(network, chosen, tokens))
    sites = {node: None for node in sites if not _only_output(node)}
    nonnegative = {node: graph.is_nonnegative(network, node) for node in sites}
    network.add_module(PREFIX, nn.Module())
    for node in sites:
        absorbs = _absorbed(network, node)
        inner = node.all_input_nodes[0] if absorbs != "none" else node
        quantizer = ActivationQuantizer(
            absorbs,
            signed=not nonnegative[node],
            bits=quantization.activation_bits,
            kind=quantization.kind,
            steps=quantization.unsigned_steps,
        )
        quantizer.train(network.training)
        network.get_submodule(PREFIX).add_module(node.name, quantizer)
        with network.graph.inserting_after(node):
            quantized = network.graph.call_module(f"{PREFIX}.{node.name}", (inner,))
        # It belongs to the module that made the value, so that this module's output is on the grid.
        quantized.meta["nn_module_stack"] = dict(node.meta.get("nn_module_stack") or {})
        node.replace_all_uses_with(quantized)
        quantized.args = (inner,)
        if absorbs != "none":
            network.graph.erase_node(node)
    network.graph.lint()
    network.recompile()


def quantizer_of(network: fx.GraphModule, node: fx.Node) -> ActivationQuantizer | None:
    """The quantizer that a node calls, or None."""
    module = graph.module_of(network, node)
    return module if isinstance(module, ActivationQuantizer) else None


@torch.no_grad()
def calibrate(
    network: fx.GraphModule, batches: Iterable[torch.Tensor], method: Literal["mse", "max"] = "mse"
) -> None:
    """Set every step from the weights and from what the activations are on these inputs [B, C, H, W].

    Activations are watched in the float network (masks on, quantizers open), in eval mode.
    """
    calibrate_weights(network)
    training = network.training
    network.eval()
    try:
        with observing(network, method):
            for images_BCHW in batches:
                network(images_BCHW)
    finally:
        network.train(training)


@torch.no_grad()
def calibrate_weights(network: nn.Module) -> None:
    """Set every weight step from the masked weight."""
    for _, module in weighted(network):
        view = weight_view(module)
        if view is not None and view.quantizer is not None:
            latent = latent_parameter(module, "weight")
            masked = latent * view._mask_like(latent)
            view.quantizer.calibrate(masked if view.out_dim == 0 else masked.transpose(0, 1))

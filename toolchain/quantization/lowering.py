"""From a quantized student to the graph that one target's kernels take.

    BatchNorm behind per-channel quantized weights folds exactly:
        gamma (s q . x - mu) / sigma + beta  =  (s |f|)(sign(f) q) . x + (beta - f mu),   f = gamma / sigma

    target `ort-cpu`   unsigned values: uint8, zero point 0; signed values: uint8, zero point 128 (the
                       same steps as int8 with zero point 0); weights int8 per output channel; a
                       slice-and-pad shortcut: a 1x1 convolution with weights 0 and 1; pooling to 1x1:
                       GlobalAveragePool; the last layer: float

What is left out is nothing the student computes: lowered and student differ by float rounding alone.
"""

from __future__ import annotations

import copy
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, fx, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.modules.conv import _ConvNd, _ConvTransposeNd

from deploy.errors import StructureError
from exporters import qdq_ops
from toolchain import graph
from toolchain.models.shortcut import PadShortcut
from toolchain.quantization.activations import ActivationQuantizer
from toolchain.quantization.attach import AVERAGES, quantizer_of
from toolchain.quantization.attached import weight_view

Target = Literal["ort-cpu"]
SIGNED_ZERO_POINT = 128


class IntegerLayer(nn.Module):
    """A convolution or linear layer whose weight is stored as int8 with one scale per output channel."""

    def __init__(
        self, layer: nn.Module, q_OX: Tensor, scale_O: Tensor, bias_O: Tensor | None, axis: int = 0
    ) -> None:
        super().__init__()
        self.axis = axis
        if bias_O is None:  # torch.onnx would build the absent bias at run time, out of float nodes
            bias_O = torch.zeros(len(scale_O))
        self.register_buffer("q_OX", q_OX)
        self.register_buffer("scale_O", scale_O)
        self.register_buffer("bias_O", bias_O)
        self.layer = layer  # geometry only: its weight is replaced in every call
        for name in ("weight", "bias"):
            if name in layer._parameters:
                layer.register_parameter(name, None)

    def forward(self, x: Tensor) -> Tensor:
        w_OX = qdq_ops.dequantize_weight(self.q_OX, self.scale_O, self.axis)
        return _apply(self.layer, x, w_OX, self.bias_O)  # type: ignore[arg-type]


def _apply(layer: nn.Module, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    if isinstance(layer, nn.Linear):
        return F.linear(x, weight, bias)
    if isinstance(layer, nn.ConvTranspose2d):
        return F.conv_transpose2d(
            x,
            weight,
            bias,
            layer.stride,
            layer.padding,
            layer.output_padding,
            layer.groups,
            layer.dilation,
        )
    if isinstance(layer, nn.Conv1d | nn.Conv2d):
        return layer._conv_forward(x, weight, bias)
    raise StructureError(
        f"export: a quantized {type(layer).__name__} has no integer form; accepted are Conv1d, Conv2d, "
        "ConvTranspose2d and Linear; name it under quantize.ignore"
    )


class GlobalAveragePool(nn.Module):
    """Pooling to 1x1, flattened where the network's own operation leaves no spatial axes."""

    def __init__(self, flat: bool) -> None:
        super().__init__()
        self.flat = flat

    def forward(self, x_BCHW: Tensor) -> Tensor:
        pooled = qdq_ops.global_average_pool(x_BCHW)
        return qdq_ops.flatten(pooled) if self.flat else pooled  # type: ignore[no-any-return]


class Flatten(nn.Module):
    """[B, ...] to [B, rest]."""

    def forward(self, x: Tensor) -> Tensor:
        return qdq_ops.flatten(x)  # type: ignore[no-any-return]


@torch.no_grad()
def lower(network: fx.GraphModule, target: Target = "ort-cpu") -> fx.GraphModule:
    """A copy of ``network`` (float or quantized, nothing masked) in the target's form, in eval mode."""
    lowered = copy.deepcopy(network).eval()
    for node in list(lowered.graph.nodes):
        layer = graph.module_of(lowered, node)
        if isinstance(layer, _ConvNd | nn.Linear):
            _lower_layer(lowered, node, layer)
    for node in list(lowered.graph.nodes):
        module = graph.module_of(lowered, node)
        if isinstance(module, PadShortcut):
            _lower_shortcut(lowered, node, module)
        elif isinstance(module, nn.AdaptiveAvgPool2d) or graph.calls(lowered, node, AVERAGES):
            _lower_pool(lowered, node, module)
        elif isinstance(module, nn.Flatten) or graph.calls(
            lowered, node, frozenset({torch.flatten, "flatten"})
        ):
            _lower_flatten(lowered, node, module)
    for node in list(lowered.graph.nodes):
        quantizer = quantizer_of(lowered, node)
        if quantizer is not None:
            lowered.set_submodule(str(node.target), fixed_grid(quantizer))
    lowered.graph.eliminate_dead_code()
    lowered.delete_all_unused_submodules()
    lowered.graph.lint()
    lowered.recompile()
    return lowered


def fixed_grid(quantizer: ActivationQuantizer) -> nn.Module:
    """The activation grid of a trained quantizer, as the target stores it."""
    relu = quantizer.absorbs != "none"  # a ReLU6's ceiling is the top of its grid
    if quantizer.bypassed:
        return nn.ReLU() if relu else nn.Identity()
    if quantizer.bits != 8:
        raise StructureError(
            f"export: activations of {quantizer.bits} bits; accepted for ort-cpu is 8; "
            "set quantize.activation_bits to 8"
        )
    zero_point = SIGNED_ZERO_POINT if quantizer.signed else 0
    return qdq_ops.FakeQuantize(float(quantizer.step()), zero_point, signed=False, relu=relu)


def _following_norm(network: fx.GraphModule, node: fx.Node) -> tuple[fx.Node, _BatchNorm] | None:
    users = list(node.users)
    if len(users) == 1:
        norm = graph.module_of(network, users[0])
        if isinstance(norm, _BatchNorm):
            return users[0], norm
    return None


def _factor_and_shift(norm: _BatchNorm) -> tuple[Tensor, Tensor]:
    """The batch norm in eval mode as f x + b, in float64."""
    if norm.running_mean is None or norm.running_var is None:
        raise StructureError(
            "export: a batch norm without running statistics cannot be folded; accepted is "
            "track_running_stats=True; change the model"
        )
    f_O = (norm.running_var.double() + norm.eps).rsqrt()
    if norm.weight is not None:
        f_O = f_O * norm.weight.double()
    b_O = -norm.running_mean.double() * f_O
    return f_O, b_O if norm.bias is None else b_O + norm.bias.double()


def _lower_layer(network: fx.GraphModule, node: fx.Node, layer: nn.Module) -> None:
    bias_O = None if layer.bias is None else layer.bias.double()  # type: ignore[union-attr, operator]
    axis = int(isinstance(layer, _ConvTransposeNd))
    view = weight_view(layer)
    if view is not None and view.quantizer is not None:
        weight = layer.parametrizations["weight"].original * view._mask_like(  # type: ignore[index, union-attr]
            layer.parametrizations["weight"].original
        )  # type: ignore[index, union-attr]
        q_OX, scale_O = view.quantizer.integers(weight.transpose(0, 1) if axis else weight)
        q_OX = q_OX.transpose(0, 1).contiguous() if axis else q_OX
    else:
        q_OX, scale_O = layer.weight.double(), None  # type: ignore[union-attr, operator]
    shape = [1] * q_OX.dim()
    shape[axis] = -1
    following = _following_norm(network, node)
    if following is not None:
        f_O, b_O = _factor_and_shift(following[1])
        bias_O = b_O if bias_O is None else bias_O * f_O + b_O
        if scale_O is None:
            q_OX = q_OX * f_O.view(shape)
        else:
            q_OX = q_OX * f_O.sign().to(q_OX.dtype).view(shape)
            scale_O = (scale_O.double() * f_O.abs()).float()
            scale_O = torch.where(scale_O > 0, scale_O, torch.ones_like(scale_O))
        following[0].replace_all_uses_with(node)
        network.graph.erase_node(following[0])
    bias = None if bias_O is None else bias_O.float()
    plain = _plain_copy(layer)
    if scale_O is None or (isinstance(layer, nn.Linear) and _is_head(network, node)):
        # A float kernel wants a float weight: int8 + DequantizeLinear would be one node more.
        weight = q_OX.float() if scale_O is None else q_OX.float() * scale_O.view(shape)
        plain.weight = nn.Parameter(weight, requires_grad=False)
        plain.bias = None if bias is None else nn.Parameter(bias, requires_grad=False)
        network.set_submodule(str(node.target), plain)
    else:
        network.set_submodule(str(node.target), IntegerLayer(plain, q_OX, scale_O, bias, axis))


def _is_head(network: fx.GraphModule, node: fx.Node) -> bool:
    return not any(quantizer_of(network, user) for user in node.users)


def _plain_copy(layer: nn.Module) -> nn.Module:
    """The same layer without views, weights left as they are."""
    if isinstance(layer, nn.Linear):
        return nn.Linear(layer.in_features, layer.out_features, bias=False)
    assert isinstance(layer, _ConvNd)
    kind = next(
        base
        for base in (
            nn.Conv1d,
            nn.Conv2d,
            nn.Conv3d,
            nn.ConvTranspose1d,
            nn.ConvTranspose2d,
            nn.ConvTranspose3d,
        )
        if isinstance(layer, base)
    )
    extra = {"output_padding": layer.output_padding} if isinstance(layer, _ConvTransposeNd) else {}
    return kind(
        layer.in_channels,
        layer.out_channels,
        layer.kernel_size,
        layer.stride,  # type: ignore[no-any-return, arg-type]
        layer.padding,
        groups=layer.groups,
        bias=False,
        dilation=layer.dilation,
        padding_mode=layer.padding_mode,
        **extra,
    )


def _lower_shortcut(network: fx.GraphModule, node: fx.Node, module: PadShortcut) -> None:
    source = node.args[0]
    assert isinstance(source, fx.Node)
    quantizer = quantizer_of(network, graph.origin(network, source))
    if quantizer is None or quantizer.bypassed:
        return
    q_OI = torch.zeros(module.out_channels, module.in_channels, 1, 1, dtype=torch.int8)
    for place, channel in enumerate(module.source_O.tolist()):
        if channel >= 0:
            q_OI[place, channel] = 1
    conv = nn.Conv2d(module.in_channels, module.out_channels, 1, module.stride, bias=False)
    layer = IntegerLayer(conv, q_OI, torch.ones(module.out_channels), None)
    grid = copy.deepcopy(quantizer)
    grid.absorbs = "none"  # the values are on the grid already: requantizing them changes nothing
    network.set_submodule(str(node.target), nn.Sequential(layer, fixed_grid(grid)))


def _replace(network: fx.GraphModule, node: fx.Node, module: nn.Module, name: str) -> None:
    network.add_submodule(name, module)
    with network.graph.inserting_after(node):
        new = network.graph.call_module(name, (node.args[0],))
    node.replace_all_uses_with(new)
    network.graph.erase_node(node)


def _lower_pool(network: fx.GraphModule, node: fx.Node, module: nn.Module | None) -> None:
    if isinstance(module, nn.AdaptiveAvgPool2d):
        if module.output_size in (1, (1, 1)):
            _replace(network, node, GlobalAveragePool(flat=False), f"lowered_{node.name}")
    elif node.target is F.adaptive_avg_pool2d:
        size = node.args[1] if len(node.args) > 1 else node.kwargs["output_size"]
        if size in (1, (1, 1), [1, 1]):
            _replace(network, node, GlobalAveragePool(flat=False), f"lowered_{node.name}")
    elif node.target in (torch.mean, "mean"):
        dims = node.args[1] if len(node.args) > 1 else node.kwargs.get("dim")
        spatial = isinstance(dims, list | tuple) and {int(d) % 4 for d in dims} == {2, 3}  # type: ignore[arg-type]
        if spatial:
            keep = bool(node.kwargs.get("keepdim", node.args[2] if len(node.args) > 2 else False))
            _replace(network, node, GlobalAveragePool(flat=not keep), f"lowered_{node.name}")


def _lower_flatten(network: fx.GraphModule, node: fx.Node, module: nn.Module | None) -> None:
    if isinstance(module, nn.Flatten):
        plain = (module.start_dim, module.end_dim) == (1, -1)
    else:
        plain = [*node.args[1:], *node.kwargs.values()] in ([1], [1, -1])
    if plain:
        _replace(network, node, Flatten(), f"lowered_{node.name}")

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
from collections import Counter
from collections.abc import Callable
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
from toolchain.quantization.attached import latent_parameter, strip_views, weight_view

Target = Literal["ort-cpu"]
SIGNED_ZERO_POINT = 128
# Of channels whose weights are all zero: any step is right for them, but ONNX Runtime rounds a bias to
# multiples of the input's step times this one.
FINE_STEP = 2.0**-10

CONVOLUTIONS = (
    nn.Conv1d,
    nn.Conv2d,
    nn.Conv3d,
    nn.ConvTranspose1d,
    nn.ConvTranspose2d,
    nn.ConvTranspose3d,
)
INTEGER_FORMS = (nn.Conv1d, nn.Conv2d, nn.ConvTranspose2d, nn.Linear)


# Integer kernels hold a bias in int32; half of its range leaves room for the sum it is added to.
LARGEST_BIAS = 2.0**30


class IntegerLayer(nn.Module):
    """A convolution or linear layer whose weight is stored as int8 with one scale per output channel."""

    q_OX: Tensor
    scale_O: Tensor
    bias_O: Tensor

    def __init__(
        self, layer: nn.Module, q_OX: Tensor, scale_O: Tensor, bias_O: Tensor | None, axis: int = 0
    ) -> None:
        super().__init__()
        if not isinstance(layer, INTEGER_FORMS):
            raise StructureError(
                f"export: a quantized {type(layer).__name__} has no integer form; accepted are "
                "Conv1d, Conv2d, ConvTranspose2d and Linear; name it under quantize.ignore"
            )
        self.axis = axis
        if bias_O is None:  # torch.onnx would build the absent bias at run time, out of float nodes
            bias_O = torch.zeros_like(scale_O)
        self.register_buffer("q_OX", q_OX)
        self.register_buffer("scale_O", scale_O)
        self.register_buffer("bias_O", bias_O)
        self.layer = layer  # geometry only: its weight is replaced in every call
        for name in ("weight", "bias"):
            if name in layer._parameters:
                layer.register_parameter(name, None)

    def forward(self, x: Tensor) -> Tensor:
        w_OX = qdq_ops.dequantize_weight(self.q_OX, self.scale_O, self.axis)
        return _apply(self.layer, x, w_OX, self.bias_O)


def _apply(layer: nn.Module, x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    if isinstance(layer, nn.Linear):
        return F.linear(x, weight, bias)
    if isinstance(layer, nn.ConvTranspose2d):
        assert not isinstance(layer.padding, str), "only convolutions have named paddings"
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
    assert isinstance(layer, nn.Conv1d | nn.Conv2d)
    return layer._conv_forward(x, weight, bias)


class GlobalAveragePool(nn.Module):
    """Pooling to 1x1, flattened where the network's own operation leaves no spatial axes."""

    def __init__(self, flat: bool) -> None:
        super().__init__()
        self.flat = flat

    def forward(self, x_BCHW: Tensor) -> Tensor:
        pooled = qdq_ops.global_average_pool(x_BCHW)
        return qdq_ops.flatten(pooled) if self.flat else pooled


class Flatten(nn.Module):
    """[B, ...] to [B, rest]."""

    def forward(self, x: Tensor) -> Tensor:
        return qdq_ops.flatten(x)


@torch.no_grad()
def lower(network: fx.GraphModule, target: Target = "ort-cpu") -> fx.GraphModule:
    """A copy of ``network`` (float or quantized, nothing masked) in the target's form, in eval mode."""
    lowered = copy.deepcopy(network).eval()
    _part_shared_layers(lowered)
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
    strip_views(lowered)
    lowered.graph.lint()
    lowered.recompile()
    return lowered


def fixed_grid(quantizer: ActivationQuantizer) -> nn.Module:
    """The activation grid of a trained quantizer, as the target stores it."""
    if quantizer.bypassed:
        return nn.Identity()
    relu = quantizer.absorbs != "none"  # a ReLU6's ceiling is the top of its grid
    if quantizer.bits != 8:
        raise StructureError(
            f"export: activations of {quantizer.bits} bits; accepted for ort-cpu is 8; "
            "set quantize.activation_bits to 8"
        )
    zero_point = SIGNED_ZERO_POINT if quantizer.signed else 0
    return qdq_ops.FakeQuantize(float(quantizer.step()), zero_point, signed=False, relu=relu)


def _part_shared_layers(network: fx.GraphModule) -> None:
    """Give each call of a layer that is called more than once a copy: each may fold another norm."""
    calls = Counter(str(node.target) for node in network.graph.nodes if node.op == "call_module")
    for node in network.graph.nodes:
        layer = graph.module_of(network, node)
        if isinstance(layer, _ConvNd | nn.Linear) and calls[str(node.target)] > 1:
            name = f"lowered_{node.name}"
            network.add_submodule(name, copy.deepcopy(layer))
            node.target = name


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


def _lower_layer(network: fx.GraphModule, node: fx.Node, layer: _ConvNd | nn.Linear) -> None:
    axis = int(isinstance(layer, _ConvTransposeNd))
    dtype = layer.weight.dtype
    bias_O = None if layer.bias is None else layer.bias.double()
    view = weight_view(layer)
    if view is not None and view.quantizer is not None:
        latent = latent_parameter(layer, "weight")
        weight = latent * view._mask_like(latent)
        q_OX, scale_O = view.quantizer.integers(weight.transpose(0, 1) if axis else weight)
        q_OX = q_OX.transpose(0, 1).contiguous() if axis else q_OX
    else:
        q_OX, scale_O = layer.weight.double(), None
    shape = [1] * q_OX.dim()
    shape[axis] = -1
    following = _following_norm(network, node)
    # Of a grouped transposed convolution a position of the second axis is a channel of every group.
    if following is not None and not (isinstance(layer, _ConvTransposeNd) and layer.groups > 1):
        f_O, b_O = _factor_and_shift(following[1])
        bias_O = b_O if bias_O is None else bias_O * f_O + b_O
        if scale_O is None:
            q_OX = q_OX * f_O.view(shape)
        else:
            scale_O = (scale_O.double() * f_O.abs()).to(dtype)
            sign_O = torch.where(scale_O > 0, f_O.sign(), 0).to(q_OX.dtype)
            q_OX = q_OX * sign_O.view(shape)
        following[0].replace_all_uses_with(node)
        network.graph.erase_node(following[0])
    bias_O = None if bias_O is None else bias_O.to(dtype)
    if scale_O is not None:
        dead_O = (q_OX == 0).transpose(0, axis).flatten(1).all(1)
        scale_O = torch.where(dead_O, FINE_STEP, scale_O)
        q_OX, scale_O = _room_for_bias(network, node, q_OX, scale_O, bias_O, shape)
    plain = _geometry(layer)
    if scale_O is None or (isinstance(layer, nn.Linear) and _is_head(network, node)):
        # A float kernel wants a float weight: int8 + DequantizeLinear would be one node more.
        w_OX = q_OX.to(dtype)
        w_OX = w_OX if scale_O is None else w_OX * scale_O.view(shape)
        plain.weight = nn.Parameter(w_OX, requires_grad=False)
        plain.bias = None if bias_O is None else nn.Parameter(bias_O, requires_grad=False)
        network.set_submodule(str(node.target), plain)
    else:
        network.set_submodule(str(node.target), IntegerLayer(plain, q_OX, scale_O, bias_O, axis))


def _room_for_bias(
    network: fx.GraphModule,
    node: fx.Node,
    q_OX: Tensor,
    scale_O: Tensor,
    bias_O: Tensor | None,
    shape: list[int],
) -> tuple[Tensor, Tensor]:
    """Coarser steps for channels whose bias would not fit the runtime's int32 of step s_x . s_w.

    Such a channel's weights are next to nothing beside its bias, and a bias that saturates is wrong by
    any amount; rounding its weights to the coarser step changes less than the bias's own step.
    """
    source = node.args[0]
    assert isinstance(source, fx.Node)
    quantizer = quantizer_of(network, graph.origin(network, source))
    shared = bias_O is not None and len(bias_O) != len(scale_O)  # a grouped transposed convolution
    if quantizer is None or bias_O is None or shared:
        return q_OX, scale_O
    least_O = bias_O.abs() / (LARGEST_BIAS * float(quantizer.step()))
    if not bool((scale_O < least_O).any()):
        return q_OX, scale_O
    wider_O = torch.maximum(scale_O, least_O.to(scale_O.dtype))
    share_OX = (scale_O / wider_O).view(shape)
    return (q_OX * share_OX).round().to(q_OX.dtype), wider_O


def _is_head(network: fx.GraphModule, node: fx.Node) -> bool:
    return not any(quantizer_of(network, user) for user in node.users)


def _geometry(layer: _ConvNd | nn.Linear) -> _ConvNd | nn.Linear:
    """The same layer without views, and with a weight that has no values yet."""
    if isinstance(layer, nn.Linear):
        return nn.Linear(layer.in_features, layer.out_features, bias=False, device="meta")
    kind: Callable[..., _ConvNd] = next(kind for kind in CONVOLUTIONS if isinstance(layer, kind))
    extra = {"output_padding": layer.output_padding} if isinstance(layer, _ConvTransposeNd) else {}
    return kind(
        layer.in_channels,
        layer.out_channels,
        layer.kernel_size,
        layer.stride,
        layer.padding,
        groups=layer.groups,
        bias=False,
        dilation=layer.dilation,
        padding_mode=layer.padding_mode,
        device="meta",
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
    conv = nn.Conv2d(
        module.in_channels, module.out_channels, 1, module.stride, bias=False, device="meta"
    )
    one_O = torch.ones(module.out_channels, dtype=quantizer.scale.dtype)
    layer = IntegerLayer(conv, q_OI, one_O, None)
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
        axes = dims if isinstance(dims, list | tuple) else ()
        if sorted(axis % 4 for axis in axes if isinstance(axis, int)) == [2, 3]:
            keep = bool(node.kwargs.get("keepdim", node.args[2] if len(node.args) > 2 else False))
            _replace(network, node, GlobalAveragePool(flat=not keep), f"lowered_{node.name}")


def _lower_flatten(network: fx.GraphModule, node: fx.Node, module: nn.Module | None) -> None:
    if isinstance(module, nn.Flatten):
        plain = (module.start_dim, module.end_dim) == (1, -1)
    else:
        plain = [*node.args[1:], *node.kwargs.values()] in ([1], [1, -1])
    if plain:
        _replace(network, node, Flatten(), f"lowered_{node.name}")

"""A convolution or linear layer of a student as a target stores it: int8 weights, BatchNorm folded in.

    BatchNorm behind per-channel quantized weights folds exactly:
        gamma (s q . x - mu) / sigma + beta  =  (s |f|)(sign(f) q) . x + (beta - f mu),   f = gamma / sigma

Weights of 2 to 8 bits are stored as int8, with one float step per output channel and a float bias.
Suffixes: O output channels, I input channels, X the axes that remain.
"""

from __future__ import annotations

import copy
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, fx, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.modules.conv import _ConvNd, _ConvTransposeNd

from deploy.errors import StructureError
from deploy.targets import Target
from exporters import qdq_ops
from toolchain import graph
from toolchain.quantization.activations import ActivationQuantizer
from toolchain.quantization.attach import quantizer_of
from toolchain.quantization.attached import latent_parameter, weight_view
from toolchain.quantization.lowered_grids import LEAST_HALF_STEP, half_steps

# Of channels whose weights are all zero: any step is right for them, but ONNX Runtime rounds a bias to
# multiples of the input's step times this one.
FINE_STEP = 2.0**-10
# Integer kernels hold a bias in int32; half of its range leaves room for the sum it is added to.
LARGEST_BIAS = 2.0**30
# Bits that a product of uint8 and int8 may have where the kernels add two of them in 16 bits.
SAFE_BITS = 7

CONVOLUTIONS = (
    nn.Conv1d,
    nn.Conv2d,
    nn.Conv3d,
    nn.ConvTranspose1d,
    nn.ConvTranspose2d,
    nn.ConvTranspose3d,
)
INTEGER_FORMS = (nn.Conv1d, nn.Conv2d, nn.ConvTranspose2d, nn.Linear)


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
                "Conv1d, Conv2d, ConvTranspose2d and Linear; name it under keep_float"
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


def part_shared_layers(network: fx.GraphModule) -> None:
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


@dataclass(frozen=True)
class FoldedLayer:
    """A layer and the batch norm behind it as one.

    Attributes:
        q_OX: Integers of a quantized weight, values of a float one.
        scale_O: Steps of a quantized weight, or None.
        bias_O: In float64, or None.
        axis: Of the output channels.
        norm: The node of the batch norm that is in it, or None.
        factor_O: By which that norm multiplies, in float64; None without it.
    """

    q_OX: Tensor
    scale_O: Tensor | None
    bias_O: Tensor | None
    axis: int
    norm: fx.Node | None
    factor_O: Tensor | None


def fold(network: fx.GraphModule, node: fx.Node, layer: _ConvNd | nn.Linear) -> FoldedLayer:
    """What ``node`` computes with its weight as the student sees it."""
    axis = int(isinstance(layer, _ConvTransposeNd))
    dtype = layer.weight.dtype
    bias_O = None if layer.bias is None else layer.bias.double()
    view = weight_view(layer)
    scale_O: Tensor | None = None
    if view is not None and view.quantizer is not None:
        latent = latent_parameter(layer, "weight")
        weight = latent * view._mask_like(latent)
        q_OX, scale_O = view.quantizer.integers(weight.transpose(0, 1) if axis else weight)
        q_OX = q_OX.transpose(0, 1).contiguous() if axis else q_OX
    else:
        q_OX = layer.weight.double()
    following = _following_norm(network, node)
    # Of a grouped transposed convolution a position of the second axis is a channel of every group.
    if following is None or (isinstance(layer, _ConvTransposeNd) and layer.groups > 1):
        norm = f_O = None
    else:
        norm, (f_O, b_O) = following[0], _factor_and_shift(following[1])
        bias_O = b_O if bias_O is None else bias_O * f_O + b_O
        if scale_O is None:
            q_OX = q_OX * _along(f_O, q_OX, axis)
        else:
            scale_O = (scale_O.double() * f_O.abs()).to(dtype)
            # Runtimes may take a subnormal step for zero, and refuse that.
            sign_O = torch.where(scale_O > torch.finfo(dtype).tiny, f_O.sign(), 0).to(q_OX.dtype)
            q_OX = q_OX * _along(sign_O, q_OX, axis)
    if scale_O is not None:
        dead_O = (q_OX == 0).transpose(0, axis).flatten(1).all(1)
        scale_O = torch.where(dead_O, FINE_STEP, scale_O)
    return FoldedLayer(q_OX, scale_O, bias_O, axis, norm, f_O)


def lower_layer(
    network: fx.GraphModule, node: fx.Node, layer: _ConvNd | nn.Linear, target: Target
) -> None:
    """Put the target's form of ``layer``, with the batch norm behind it, in its place."""
    dtype = layer.weight.dtype
    folded = fold(network, node, layer)
    q_OX, scale_O, axis = folded.q_OX, folded.scale_O, folded.axis
    bias_O = None if folded.bias_O is None else folded.bias_O.to(dtype)
    if scale_O is not None:
        q_OX, scale_O = for_kernels(network, node, q_OX, scale_O, bias_O, axis, target)
    if folded.norm is not None:
        folded.norm.replace_all_uses_with(node)
        network.graph.erase_node(folded.norm)
    plain = _geometry(layer)
    if scale_O is None or is_float_head(network, layer, node):
        # A float kernel wants a float weight: int8 + DequantizeLinear would be one node more.
        w_OX = q_OX.to(dtype)
        w_OX = w_OX if scale_O is None else w_OX * _along(scale_O, w_OX, axis)
        plain.weight = nn.Parameter(w_OX, requires_grad=False)
        plain.bias = None if bias_O is None else nn.Parameter(bias_O, requires_grad=False)
        network.set_submodule(str(node.target), plain)
    else:
        network.set_submodule(str(node.target), IntegerLayer(plain, q_OX, scale_O, bias_O, axis))


def _along(vector_O: Tensor, tensor: Tensor, axis: int) -> Tensor:
    """``vector_O`` in a shape that broadcasts along ``axis`` of ``tensor``."""
    shape = [1] * tensor.dim()
    shape[axis] = -1
    return vector_O.view(shape)


def for_kernels(
    network: fx.GraphModule,
    node: fx.Node,
    q_OX: Tensor,
    scale_O: Tensor,
    bias_O: Tensor | None,
    axis: int,
    target: Target,
) -> tuple[Tensor, Tensor]:
    """The same weights in the integers and steps that the target's kernels do best with."""
    if target == "tensorrt":
        return q_OX, scale_O
    if target == "tensorrt-fp16":
        q_OX, scale_O = _coarser(q_OX, scale_O, torch.tensor(LEAST_HALF_STEP), axis)
        return q_OX, half_steps(scale_O)
    view = weight_view(graph.module_of(network, node))  # type: ignore[arg-type]
    assert view is not None and view.quantizer is not None
    spare = 2 ** max(SAFE_BITS - view.quantizer.bits, 0)
    q_OX, scale_O = q_OX * spare, scale_O / spare  # a bias is rounded to multiples of this step
    least_O = _least_for_bias(network, node, scale_O, bias_O)
    return (q_OX, scale_O) if least_O is None else _coarser(q_OX, scale_O, least_O, axis)


def _least_for_bias(
    network: fx.GraphModule, node: fx.Node, scale_O: Tensor, bias_O: Tensor | None
) -> Tensor | None:
    """Steps below which the bias would not fit ONNX Runtime's int32 of step s_x . s_w.

    Such a channel's weights are next to nothing beside its bias, and a bias that saturates is wrong by
    any amount; rounding its weights to the coarser step changes less than the bias's own step.
    """
    quantizer = input_quantizer(network, node)
    shared = bias_O is not None and len(bias_O) != len(scale_O)  # a grouped transposed convolution
    if quantizer is None or bias_O is None or shared:
        return None
    return (bias_O.abs() / (LARGEST_BIAS * float(quantizer.step()))).to(scale_O.dtype)


def input_quantizer(network: fx.GraphModule, node: fx.Node) -> ActivationQuantizer | None:
    """The quantizer on whose grid the layer's input is, or None."""
    source = node.args[0]
    assert isinstance(source, fx.Node)
    return quantizer_of(network, graph.origin(network, source))


def _coarser(q_OX: Tensor, scale_O: Tensor, least_O: Tensor, axis: int) -> tuple[Tensor, Tensor]:
    """Channels with smaller steps than ``least_O``, rounded to these."""
    if not bool((scale_O < least_O).any()):
        return q_OX, scale_O
    wider_O = torch.maximum(scale_O, least_O)
    return (q_OX * _along(scale_O / wider_O, q_OX, axis)).round().to(q_OX.dtype), wider_O


def is_float_head(network: fx.GraphModule, layer: nn.Module, end: fx.Node) -> bool:
    """Whether it is the linear layer that gives the logits, at ``end``: its kernel is float."""
    return isinstance(layer, nn.Linear) and all(user.op == "output" for user in end.users)


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

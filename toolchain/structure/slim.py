"""Physical removal: a channel plan applied to modules, state dictionaries and optimizer state.

    slim(x) = masked(x)    for every x, with the masked channels' tensors gone

Slicing is by index only: no dependency analysis happens here, so a stored plan is replayed without any
pruning library. Suffixes: O output positions, I input positions of a module.
"""

from __future__ import annotations

import copy
from collections.abc import Iterable, Mapping, Sequence

import torch
from torch import Tensor, fx, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.modules.conv import _ConvNd, _ConvTransposeNd

from deploy.errors import StructureError
from toolchain.graph import remove_branches
from toolchain.models.shortcut import PadShortcut
from toolchain.structure.plan import Axis, ChannelPlan, Group

SLICEABLE = (
    nn.Conv1d,
    nn.Conv2d,
    nn.ConvTranspose1d,
    nn.ConvTranspose2d,
    nn.Linear,
    _BatchNorm,
    PadShortcut,
)


def is_depthwise(module: nn.Module) -> bool:
    """Whether each output channel of a convolution sees exactly its own input channel."""
    return (
        isinstance(module, _ConvNd)
        and module.groups > 1
        and module.groups == module.in_channels == module.out_channels
    )


def axis_size(module: nn.Module, axis: Axis) -> int:
    """Positions along one axis of a module that can be sliced.

    Raises:
        StructureError: The kind of module cannot be sliced.
    """
    if isinstance(module, _BatchNorm):
        return module.num_features
    if isinstance(module, nn.Linear):
        return module.out_features if axis == "out" else module.in_features
    if isinstance(module, _ConvNd | PadShortcut):
        return module.out_channels if axis == "out" else module.in_channels
    raise StructureError(
        f"slim: a {type(module).__name__} cannot be cut; accepted are convolutions, linear layers, "
        "batch norms and pad shortcuts; name it under structure.ignore"
    )


def state_axes(module: nn.Module) -> dict[str, tuple[Axis | None, ...]]:
    """For each per-channel tensor of a module, by its own name, what each axis runs over.

    Parametrized tensors (``weight`` under a view) have the axes of the tensor they stand for.
    """
    if isinstance(module, _BatchNorm):
        names = ("weight", "bias", "running_mean", "running_var")
        return dict.fromkeys(names, ("out",))
    if is_depthwise(module):
        return {"weight": ("out", None), "bias": ("out",)}
    if isinstance(module, _ConvTransposeNd):
        return {"weight": ("in", "out"), "bias": ("out",)}
    if isinstance(module, _ConvNd | nn.Linear):
        return {"weight": ("out", "in"), "bias": ("out",)}
    return {}


def slice_tensor(
    tensor: Tensor, axes: Sequence[Axis | None], kept: Mapping[Axis, Sequence[int] | None]
) -> Tensor:
    """The part of ``tensor`` that stays; axes without an entry in ``kept`` are left whole."""
    for dim, axis in enumerate(axes):
        positions = kept.get(axis) if axis is not None else None
        if positions is not None:
            index = torch.as_tensor(positions, dtype=torch.long, device=tensor.device)
            tensor = tensor.index_select(dim, index)
    return tensor


def slice_module(module: nn.Module, out: Sequence[int] | None, in_: Sequence[int] | None) -> None:
    """Keep only these output and input positions of a plain module, in place; None keeps all.

    Raises:
        StructureError: The kind of module cannot be cut, or nothing would be left of it.
    """
    for positions, axis in ((out, "output"), (in_, "input")):
        if positions is not None and not len(positions):
            raise StructureError(
                f"slim: all {axis} channels of a {type(module).__name__} would be removed; "
                "at least one has to stay; lower the sparsity or remove the whole branch"
            )
    axis_size(module, "out")
    if isinstance(module, _ConvNd) and module.groups > 1 and not is_depthwise(module):
        raise StructureError(
            f"slim: a convolution with groups={module.groups} cannot be cut; accepted are groups=1 "
            "and depthwise; name it under structure.ignore"
        )
    kept: dict[Axis, Sequence[int] | None] = {"out": out, "in": in_}
    if is_depthwise(module):  # one position, seen from either side
        kept = {"out": out if out is not None else in_, "in": None}
    for name, axes in state_axes(module).items():
        tensor = getattr(module, name)
        if tensor is None:
            continue
        part = slice_tensor(tensor.detach(), axes, kept).clone()
        if isinstance(tensor, nn.Parameter):
            setattr(module, name, nn.Parameter(part, requires_grad=tensor.requires_grad))
        else:
            setattr(module, name, part)
    if isinstance(module, PadShortcut):
        _slice_shortcut(module, out, in_)
    _set_sizes(module, kept)


def _slice_shortcut(
    module: PadShortcut, out: Sequence[int] | None, in_: Sequence[int] | None
) -> None:
    source_O = module.source_O.clone()
    if in_ is not None:
        place_I = torch.full((module.in_channels + 1,), -1, dtype=torch.long)  # last: source -1
        place_I[torch.as_tensor(in_, dtype=torch.long)] = torch.arange(len(in_))
        source_O = place_I[source_O]
    if out is not None:
        source_O = source_O[torch.as_tensor(out, dtype=torch.long)]
    module.source_O = source_O


def _set_sizes(module: nn.Module, kept: Mapping[Axis, Sequence[int] | None]) -> None:
    out, in_ = kept["out"], kept["in"]
    if isinstance(module, _BatchNorm):
        module.num_features = module.num_features if out is None else len(out)
    elif isinstance(module, nn.Linear):
        module.out_features = module.out_features if out is None else len(out)
        module.in_features = module.in_features if in_ is None else len(in_)
    elif is_depthwise(module) and isinstance(module, _ConvNd):
        if out is not None:
            module.groups = module.in_channels = module.out_channels = len(out)
    elif isinstance(module, _ConvNd | PadShortcut):
        module.out_channels = module.out_channels if out is None else len(out)
        module.in_channels = module.in_channels if in_ is None else len(in_)


def plan_of(
    network: fx.GraphModule,
    groups: Iterable[Group],
    kept: Mapping[str, Sequence[int]],
    removed: Mapping[str, int] | None = None,
) -> ChannelPlan:
    """The plan, relative to ``network`` as it is, that keeps these channels of each named group."""
    gone: dict[tuple[str, Axis], set[int]] = {}
    for group in groups:
        if group.name not in kept:
            continue
        dropped = set(range(group.channels)) - set(kept[group.name])
        for part in group.slices:
            positions = gone.setdefault((part.module, part.axis), set())
            positions.update(position for channel in dropped for position in part.index[channel])
    sides: dict[Axis, dict[str, tuple[int, ...]]] = {"out": {}, "in": {}}
    for (name, axis), positions in gone.items():
        if positions:
            size = axis_size(network.get_submodule(name), axis)
            sides[axis][name] = tuple(i for i in range(size) if i not in positions)
    return ChannelPlan(sides["out"], sides["in"], dict(removed or {}))


def compose(first: ChannelPlan, second: ChannelPlan) -> ChannelPlan:
    """The plan that does ``first`` and then ``second``, whose positions refer to first's result."""

    def side(
        one: Mapping[str, tuple[int, ...]], two: Mapping[str, tuple[int, ...]]
    ) -> dict[str, tuple[int, ...]]:
        both = dict(one)
        for name, kept in two.items():
            both[name] = tuple(one[name][i] for i in kept) if name in one else kept
        return both

    return ChannelPlan(
        side(first.out, second.out),
        side(first.in_, second.in_),
        {**first.removed, **second.removed},
    )


def cut(network: fx.GraphModule, plan: ChannelPlan) -> fx.GraphModule:
    """A physically smaller copy of a plain network (no views attached).

    Raises:
        StructureError: The plan does not fit the network.
    """
    slim = copy.deepcopy(network)
    remove_branches(slim, plan.removed)
    modules = dict(slim.named_modules())
    for name in dict.fromkeys([*plan.out, *plan.in_]):
        if name in modules:  # else it went with its branch
            slice_module(modules[name], plan.out.get(name), plan.in_.get(name))
    return slim


def slice_state(
    network: nn.Module, state: Mapping[str, Tensor], plan: ChannelPlan
) -> dict[str, Tensor]:
    """A state dictionary of ``network`` (views attached or not), cut as the plan says.

    Works for anything keyed by parameter name with the parameter's shape, so optimizer state goes
    through here too. Entries of removed modules stay; the slim network's keys decide.
    """
    axes_by_key: dict[str, tuple[str, tuple[Axis | None, ...]]] = {}
    for path, module in network.named_modules():
        for name, axes in _attached_axes(module).items():
            key = f"{path}.{name}" if path else name
            axes_by_key.setdefault(key, (path, axes))  # a norm speaks for its teacher's norm
    sliced = {}
    for key, tensor in state.items():
        if key in axes_by_key and tensor.dim():
            path, axes = axes_by_key[key]
            out = plan.out.get(path)
            if is_depthwise(network.get_submodule(path)) and out is None:
                out = plan.in_.get(path)
            tensor = slice_tensor(tensor, axes, {"out": out, "in": plan.in_.get(path)})
        sliced[key] = tensor
    return sliced


def _attached_axes(module: nn.Module) -> dict[str, tuple[Axis | None, ...]]:
    """`state_axes` of a module, and of what views, quantizers and a teacher's batch norm add to it."""
    if isinstance(module, PadShortcut):
        return {"keep_O": ("out",), "keep_I": ("in",)}
    named: dict[str, tuple[Axis | None, ...]] = {}
    for name, axes in state_axes(module).items():
        chain = f"parametrizations.{name}"
        named |= {
            name: axes,
            f"{chain}.original": axes,
            f"{chain}.0.keep_OX": axes,
            f"{chain}.0.keep_O": ("out",),
            f"{chain}.0.quantizer.scale_O": ("out",),
        }
        if "in" in axes:
            named[f"{chain}.0.keep_I"] = ("in",)
        if isinstance(module, _BatchNorm):
            named[f"teacher.{name}"] = axes
    return named

"""Which channels must be cut together, found by torch-pruning and then proven.

torch-pruning's dependency graph (Fang et al. 2023, "DepGraph: Towards Any Structural Pruning",
https://arxiv.org/abs/2301.12900) says which positions of which tensors a channel is tied to. Its
answers are translated into our own types, joined where they overlap, and tried (``trial``): a group
whose cut network is not the masked network carries the reason and is left whole.
"""

from __future__ import annotations

import copy
import difflib
import fnmatch
import warnings
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import torch
from torch import nn
from torch.nn.modules.conv import _ConvNd

from deploy.errors import ConfigError, StructureError
from toolchain.models.shortcut import PadShortcut
from toolchain.structure.chains import find_chains
from toolchain.structure.plan import Axis, Group, Slice
from toolchain.structure.slim import SLICEABLE, axis_size, is_depthwise
from toolchain.structure.trial import Trial

Atom = tuple[str, Axis, int]  # one position of one axis of one module
OUTPUT = "network output"
_CHANNEL_PAD = slice(
    4, 6
)  # of the arguments of a pad of [B, C, H, W], which start at the last axis


def find_groups(
    network: nn.Module, input_shape: Sequence[int], ignore: Sequence[str] = (), trial: bool = True
) -> list[Group]:
    """Every group of channels of ``network``, in the order of its modules; each channel once.

    Args:
        network: A network without views; it is not changed.
        input_shape: Shape of one sample, without batch.
        ignore: Modules whose output channels stay, by path, glob or type name (``Conv2d``,
            ``linear``, ``DepthwiseConv``); a path stands for everything below it.
        trial: Whether each group is tried; without it torch-pruning is believed.

    Raises:
        ConfigError: A pattern of ``ignore`` matches nothing.
        StructureError: The network does not run on ``input_shape``.
    """
    ignored = ignored_modules(network, ignore)
    _check_runs(network, input_shape)
    try:
        groups = _translate(network, input_shape)
    except _Unfollowable as error:
        groups = find_chains(network, f"torch-pruning cannot follow this network ({error})")
    groups = [_with_reason(group, _ignored_by(group, ignored)) for group in groups]
    if trial:
        candidates = [group for group in groups if group.reason is None]
        failures = Trial(network, input_shape).failures(candidates)
        groups = [_with_reason(group, failures.get(group.name)) for group in groups]
    return groups


def ignored_modules(network: nn.Module, patterns: Iterable[str]) -> dict[str, str]:
    """Paths of the modules that the patterns name, each with the pattern that named it.

    Raises:
        ConfigError: A pattern matches nothing.
    """
    modules = {name: module for name, module in network.named_modules() if name}
    found: dict[str, str] = {}
    for pattern in patterns:
        matches = [
            name
            for name, module in modules.items()
            if name == pattern
            or name.startswith(f"{pattern}.")
            or fnmatch.fnmatchcase(name, pattern)
            or pattern.casefold() in _type_names(module)
        ]
        if not matches:
            known = {*modules, *(type(module).__name__ for module in modules.values())}
            near = difflib.get_close_matches(pattern, sorted(known), n=1, cutoff=0.0)
            raise ConfigError(
                f"structure.ignore: {pattern!r} matches no module; accepted are module paths, globs "
                f"and type names; the nearest is {near[0]!r}"
                if near
                else f"structure.ignore: {pattern!r} matches no module; the network has none"
            )
        for name in matches:
            found.setdefault(name, pattern)
    return found


def _type_names(module: nn.Module) -> set[str]:
    names = {
        kind.__name__.casefold()
        for kind in type(module).__mro__
        if issubclass(kind, nn.Module) and kind is not nn.Module
    }
    return names | ({"depthwiseconv"} if is_depthwise(module) else set())


def _ignored_by(group: Group, ignored: Mapping[str, str]) -> str | None:
    for part in group.slices:
        if part.axis == "out" and part.module in ignored:
            return f"{part.module} is ignored by {ignored[part.module]!r}"
    return None


def _with_reason(group: Group, reason: str | None) -> Group:
    if reason is None or group.reason is not None:
        return group
    return Group(group.name, group.channels, group.slices, reason)


def _check_runs(network: nn.Module, input_shape: Sequence[int]) -> None:
    private = copy.deepcopy(network).eval()
    try:
        with torch.no_grad():
            private(torch.zeros(2, *input_shape, dtype=next(network.parameters()).dtype))
    except Exception as error:  # whatever the user's forward raises
        raise StructureError(
            f"model: the network does not run on a batch of two {list(input_shape)} samples "
            f"({type(error).__name__}: {' '.join(str(error).split())[:160]}); accepted is one tensor "
            "in and logits out; check image_size and in_channels"
        ) from error


class _Unfollowable(Exception):
    """torch-pruning could not build its graph."""


def _translate(network: nn.Module, input_shape: Sequence[int]) -> list[Group]:
    """torch-pruning's groups in our types, joined where they overlap."""
    import torch_pruning

    private = copy.deepcopy(network).eval().float().requires_grad_(True)
    _replace_shortcuts(private)
    names = {module: name for name, module in private.named_modules()}
    graph = torch_pruning.DependencyGraph()
    try:
        with warnings.catch_warnings(), torch.enable_grad():
            warnings.simplefilter("ignore")  # it warns of parameters that we report as reasons
            graph.build_dependency(private, torch.randn(2, *input_shape), verbose=False)
    except Exception as error:  # it raises whatever it stumbles over
        raise _Unfollowable(
            f"{type(error).__name__}: {' '.join(str(error).split())[:120]}"
        ) from error

    classes = _Classes()
    reasons: dict[Atom, str] = {}
    roots: dict[str, list[Atom]] = {}
    for module, name in names.items():
        if not isinstance(module, _ConvNd | nn.Linear) or module not in graph.module2node:
            continue
        pruner = graph.get_pruner_of_module(module)
        channels = axis_size(module, "out")
        atoms: list[Atom] = [(name, "out", channel) for channel in range(channels)]
        roots[name] = atoms
        for atom in atoms:
            classes.add(atom)
        try:
            group = graph.get_pruning_group(
                module, pruner.prune_out_channels, list(range(channels))
            )
        except Exception as error:  # likewise
            reasons[atoms[0]] = f"torch-pruning fails here ({type(error).__name__}: {error})"
            continue
        for item in group:
            reason = _join(graph, item, names, atoms, classes)
            if reason is not None:
                reasons.setdefault(atoms[0], reason)
    return _groups(network, roots, classes, reasons)


def _replace_shortcuts(network: nn.Module) -> None:
    """A 1x1 convolution in place of every PadShortcut: its two sides are cut independently."""
    for path, module in list(network.named_modules()):
        if isinstance(module, PadShortcut):
            parent, _, leaf = path.rpartition(".")
            stand_in = nn.Conv2d(
                module.in_channels, module.out_channels, 1, module.stride, bias=False
            )
            network.get_submodule(parent)._modules[leaf] = stand_in


def _join(
    graph: Any, item: Any, names: Mapping[nn.Module, str], atoms: Sequence[Atom], classes: _Classes
) -> str | None:
    """Tie what one dependency names to the root's channels; why that cannot be cut, or None."""
    node, target = item.dep.target, item.dep.target.module
    if isinstance(target, nn.Parameter):
        return f"the parameter {graph._param_to_name.get(target, '?')} is used directly in forward"
    out = graph.is_out_channel_pruning_fn(item.dep.handler)
    if type(target).__module__.startswith("torch_pruning"):  # an operation, not a module
        if any(getattr(node.grad_fn, "_saved_pad", ())[_CHANNEL_PAD]):
            return (
                "forward pads channels with zeros; "
                "toolchain.models.shortcut.PadShortcut does that in a way that can be cut"
            )
        return OUTPUT if not node.outputs else None
    name = names[target]
    if out and not node.outputs:
        return OUTPUT
    if not isinstance(target, SLICEABLE):
        per_channel = any(parameter.numel() > 1 for parameter in target.parameters())
        normalises = isinstance(target, nn.LayerNorm | nn.GroupNorm | nn.MultiheadAttention)
        kind = f"{name} is a {type(target).__name__}"
        return f"{kind}, which cannot be cut" if per_channel or normalises else None
    if isinstance(target, _ConvNd) and target.groups > 1 and not is_depthwise(target):
        return f"{name} is a convolution with groups={target.groups}"
    single = is_depthwise(target) or isinstance(target, nn.modules.batchnorm._BatchNorm)
    axis: Axis = "out" if out or single else "in"
    size = axis_size(target, axis)
    for position, root in zip(item.idxs, item.root_idxs, strict=True):
        if not 0 <= position < size:
            return f"torch-pruning names channel {position} of {name}, which has {size}"
        classes.join(atoms[root], (name, axis, position))
    return None


class _Classes:
    """Atoms that live or die together: disjoint sets with path halving."""

    def __init__(self) -> None:
        self._parent: dict[Atom, Atom] = {}

    def add(self, atom: Atom) -> None:
        self._parent.setdefault(atom, atom)

    def find(self, atom: Atom) -> Atom:
        parent = self._parent
        while parent[atom] != atom:
            parent[atom] = parent[parent[atom]]
            atom = parent[atom]
        return atom

    def join(self, one: Atom, two: Atom) -> None:
        self.add(two)
        self._parent[self.find(two)] = self.find(one)

    def members(self) -> dict[Atom, list[Atom]]:
        found: dict[Atom, list[Atom]] = {}
        for atom in self._parent:
            found.setdefault(self.find(atom), []).append(atom)
        return found


def _groups(
    network: nn.Module,
    roots: Mapping[str, Sequence[Atom]],
    classes: _Classes,
    reasons: Mapping[Atom, str],
) -> list[Group]:
    """One group per set of channels that touch the same axes equally often.

    After a concatenation two producers meet in one consumer: each is a group of its own, with its own
    range of the consumer's positions.
    """
    order = {name: place for place, (name, _) in enumerate(network.named_modules())}
    signatures: dict[
        tuple[tuple[str, Axis, int], ...], list[dict[tuple[str, Axis], list[int]]]
    ] = {}
    for atoms in classes.members().values():
        axes: dict[tuple[str, Axis], list[int]] = {}
        for name, axis, position in atoms:
            axes.setdefault((name, axis), []).append(position)
        ordered = sorted(axes.items(), key=lambda entry: (order[entry[0][0]], entry[0][1] == "in"))
        signature = tuple((name, axis, len(positions)) for (name, axis), positions in ordered)
        signatures.setdefault(signature, []).append(
            {axis: sorted(positions) for axis, positions in ordered}
        )
    root_reasons = {root[0]: reason for root, reason in reasons.items()}
    groups: list[Group] = []
    names: dict[str, int] = {}
    for signature, channels in sorted(signatures.items(), key=lambda entry: _place(entry, order)):
        producer = next(name for name, axis, _ in signature if axis == "out" and name in roots)
        channels.sort(key=lambda axes: axes[producer, "out"])
        slices = tuple(
            Slice(name, axis, tuple(tuple(axes[name, axis]) for axes in channels))
            for name, axis, _ in signature
        )
        inside = [name for name, axis, _ in signature if axis == "out" and name in root_reasons]
        reason = root_reasons[inside[0]] if inside else None
        if reason is None and len(channels) < 2:
            reason = "a single channel"
        names[producer] = names.get(producer, 0) + 1
        name = producer if names[producer] == 1 else f"{producer}#{names[producer]}"
        groups.append(Group(name, len(channels), slices, reason))
    return groups


def _place(
    entry: tuple[tuple[tuple[str, Axis, int], ...], list[dict[tuple[str, Axis], list[int]]]],
    order: Mapping[str, int],
) -> tuple[int, int]:
    signature, channels = entry
    name, axis, _ = signature[0]
    return order[name], min(axes[name, axis][0] for axes in channels)

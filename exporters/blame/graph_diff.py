"""Where does a graph differ from one that is trusted: nodes that are gone or new, constants that changed?

Nodes are the same when their names are, or, in files of different exporters, when what they write has the
same name. Weights are compared dequantized. A constant may differ by a hundredth of its largest value, which
is what another way of rounding leaves; what that costs is the parity ladder's to say.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Set
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

import numpy as np

from exporters.blame.graph_layers import GraphLayers

if TYPE_CHECKING:
    from onnx import ModelProto, NodeProto

    Key = Callable[[NodeProto], str]

ROUNDING = 1e-2
Kind = Literal["constant", "missing", "extra", "wiring"]


@dataclass(frozen=True)
class Difference:
    """One difference of the suspect from the trusted graph.

    ``layer`` is where it is, ``node`` the node in question, ``what`` says it in words.
    """

    layer: str
    node: str
    kind: Kind
    what: str


def differences(trusted: ModelProto, suspect: ModelProto) -> list[Difference]:
    """All differences, in the order of the graphs; empty means the same computation."""
    one, two = GraphLayers(trusted), GraphLayers(suspect)
    key = _key(trusted, suspect)
    ours = {key(node): node for node in trusted.graph.node}
    theirs = {key(node): node for node in suspect.graph.node}
    shared = ours.keys() & theirs.keys()
    found: list[Difference] = []
    for name, node in ours.items():
        other = theirs.get(name)
        if other is None or other.op_type != node.op_type:
            what = f"{node.op_type} {_name(node)} is not there"
            found.append(Difference(one.of(node), _name(node), "missing", what))
        else:
            found += _inputs(one, two, node, other, key, shared)
    for name, node in theirs.items():
        if name not in ours or ours[name].op_type != node.op_type:
            what = f"{node.op_type} {_name(node)} should not be there"
            found.append(Difference(two.of(node), _name(node), "extra", what))
    return found


def _key(trusted: ModelProto, suspect: ModelProto) -> Key:
    """What identifies a node: of its name and what it writes, the one that more nodes share."""

    def shared(key: Key) -> int:
        return len(set(map(key, trusted.graph.node)) & set(map(key, suspect.graph.node)))

    return max((_name, _writes), key=shared)


def _name(node: NodeProto) -> str:
    return str(node.name or node.output[0])


def _writes(node: NodeProto) -> str:
    return str(node.output[0])


def _inputs(
    one: GraphLayers,
    two: GraphLayers,
    node: NodeProto,
    other: NodeProto,
    key: Key,
    shared: Set[str],
) -> list[Difference]:
    """What the same node reads in both: constants by value, others by the node that makes them."""
    here = _name(node)

    def difference(kind: Kind, what: str) -> Difference:
        return Difference(one.of(node), _name(node), kind, what)

    if len(node.input) != len(other.input):
        what = f"{here} has {len(other.input)} inputs instead of {len(node.input)}"
        return [difference("wiring", what)]
    if node.op_type == "DequantizeLinear" and one.graph.is_constant(node):
        weights = one.dequantized(node), two.dequantized(other)
        if weights[0] is not None and weights[1] is not None:
            changed = _changed(weights[0], weights[1])
            what = f"weights of {one.of(node)}, dequantized, {changed.replace('is ', 'are ', 1)}"
            return [difference("constant", what)] if changed else []
    found = []
    for ours, theirs in zip(node.input, other.input, strict=True):
        constants = ours in one.graph.constants, theirs in two.graph.constants
        if all(constants):
            changed = _changed(one.graph.array(ours), two.graph.array(theirs))
            if changed:
                own = ours.startswith(one.of(node))
                what = f"{ours} {changed}" if own else f"{ours} of {here} {changed}"
                found.append(difference("constant", what))
        elif any(constants):
            found.append(difference("wiring", f"{here} reads {theirs} instead of {ours}"))
        else:
            makers = one.graph.producer.get(ours), two.graph.producer.get(theirs)
            keys = {"" if maker is None else key(maker) for maker in makers}
            # A node that is gone or new is a difference of its own; its neighbours follow from it.
            if len(keys) > 1 and keys - {""} <= shared:
                found.append(difference("wiring", f"{here} reads {theirs} instead of {ours}"))
    return found


def _changed(ours: np.ndarray, theirs: np.ndarray) -> str:
    """How one constant differs from the other, in words, or nothing."""
    if ours.shape != theirs.shape or ours.dtype != theirs.dtype:
        return f"is {theirs.dtype} {theirs.shape} instead of {ours.dtype} {ours.shape}"
    if not np.issubdtype(ours.dtype, np.floating):
        count = int((ours != theirs).sum())
        return f"differs in {count} of {ours.size} values" if count else ""
    close = np.isclose(ours, theirs, rtol=ROUNDING, atol=ROUNDING * float(_largest(ours)))
    if ours.size == 1:  # a scale: next to itself, not to the largest of many
        close = np.isclose(ours, theirs, rtol=ROUNDING, atol=0)
    if close.all():
        return ""
    with np.errstate(divide="ignore", invalid="ignore"):
        factors = Counter(np.round((theirs / ours)[~close].ravel(), 3).tolist())
    factor, count = factors.most_common(1)[0]
    wrong = int((~close).sum())
    if np.isfinite(factor) and factor and count == wrong:
        return f"is {factor:g} times what it should be" + (
            f" in {wrong} of {ours.size} values" if ours.size > 1 else ""
        )
    return f"differs in {wrong} of {ours.size} values"


def _largest(array: np.ndarray) -> float:
    finite = np.abs(array[np.isfinite(array)])
    return float(finite.max(initial=0))

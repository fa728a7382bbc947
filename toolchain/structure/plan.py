"""Structure as data: which channels go together, which branches may go, and what is kept.

A *group* is a set of channels that live or die together: cutting channel ``c`` of the group removes,
from every tensor axis named by its slices, the positions ``index[c]``. A *branch* is the weighted side
of a residual add. A *channel plan* says what is kept of the network as its constructor builds it;
together with the constructor and the weights it is all that a slim network needs to be rebuilt.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

Axis = Literal["out", "in"]


@dataclass(frozen=True)
class Slice:
    """One axis of one module that belongs to a group.

    Attributes:
        module: Dotted path in the network.
        axis: ``out`` (weight axis 0, bias, norm parameters) or ``in`` (weight axis 1).
        index: For each channel of the group, the positions along the axis; several after a flatten.
    """

    module: str
    axis: Axis
    index: tuple[tuple[int, ...], ...]


@dataclass(frozen=True)
class Group:
    """Channels that are cut together.

    Attributes:
        name: Path of the first module that produces the channels.
        channels: How many channels the group has now.
        slices: Every module axis that changes with it.
        reason: Why it cannot be cut, or None.
    """

    name: str
    channels: int
    slices: tuple[Slice, ...]
    reason: str | None = None


@dataclass(frozen=True)
class Branch:
    """The weighted side of a residual add, which may be removed as a whole.

    Attributes:
        name: Longest module path shared by its modules, e.g. ``layer1.1``.
        add: Name of the add node in the traced graph.
        kept: Which argument of the add remains, 0 or 1.
        modules: Modules that run on this side only.
        reason: Why it cannot be removed, or None.
    """

    name: str
    add: str
    kept: int
    modules: tuple[str, ...]
    reason: str | None = None


@dataclass(frozen=True)
class ChannelPlan:
    """What is kept of the network that the constructor builds; positions refer to that network.

    Attributes:
        out: Module path to the kept positions of its output axis; absent means all.
        in_: Likewise for the input axis.
        removed: Residual adds whose branch is gone: node name to the argument that stays.
    """

    out: Mapping[str, tuple[int, ...]] = field(default_factory=dict)
    in_: Mapping[str, tuple[int, ...]] = field(default_factory=dict)
    removed: Mapping[str, int] = field(default_factory=dict)

    def to_json(self) -> dict[str, Any]:
        return {
            "out": {name: list(kept) for name, kept in self.out.items()},
            "in": {name: list(kept) for name, kept in self.in_.items()},
            "removed": dict(self.removed),
        }

    @classmethod
    def from_json(cls, record: Mapping[str, Any]) -> ChannelPlan:
        return cls(
            {name: tuple(kept) for name, kept in record["out"].items()},
            {name: tuple(kept) for name, kept in record["in"].items()},
            dict(record["removed"]),
        )

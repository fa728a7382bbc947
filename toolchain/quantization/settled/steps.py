"""Steps of values that are added or concatenated: odd multiples of one unit.

    y = s_y . round((s_a i_a + s_b i_b) / s_y),    s_a = n_a u,  s_b = n_b u,  s_y = n_y u,  all n odd

The argument of the rounding is then an integer over the odd n_y, which is at least 1 / (2 n_y) away from
every half: sums in float32, in whatever order, and the kernels of integer adds round it alike. u is the
smallest step over 127, so a step moves by less than a hundredth, unless the largest is more than 32 times
the smallest. Values stay what they were; only where they are rounded to moves.
"""

from __future__ import annotations

import torch
from torch import fx

from toolchain import graph
from toolchain.quantization.activations import ActivationQuantizer
from toolchain.quantization.attach import quantizer_of

# Of the smallest step, and at most: a margin of 1/8190 is far above what float32 gets wrong.
SMALLEST, LARGEST = 127, 4095
# A product or fraction in float32 is this far from itself.
SAME = 2.0**-20


@torch.no_grad()
def settle_steps(network: fx.GraphModule) -> float:
    """Move the steps in place; returns the largest relative change.

    Joints with a value that is on no grid, or on a masked branch's, are left as they are. So is a ReLU6's
    step where an odd multiple would carry its grid past 6.
    """
    largest = 0.0
    for members in _joined(network):
        steps = torch.stack([member.step().double() for member in members])
        unit = torch.maximum(steps.min() / SMALLEST, steps.max() / LARGEST)
        for member, step in zip(members, steps, strict=True):
            odd = nearest_odd(step / unit)
            if member.absorbs == "relu6" and odd * unit > step:
                odd = (odd - 2).clamp_min(1)
            change = abs(float(odd * unit / step) - 1)
            if change > SAME:
                member.scale.copy_(odd * unit)
                largest = max(largest, change)
    return largest


def nearest_odd(x: torch.Tensor) -> torch.Tensor:
    """The odd integer at least 1 that is nearest to each number."""
    return (2 * ((x - 1) / 2).round() + 1).clamp_min(1)


def _joined(network: fx.GraphModule) -> list[list[ActivationQuantizer]]:
    """Quantizers whose values meet in an add or a concatenation, directly or through others."""
    parent: dict[ActivationQuantizer, ActivationQuantizer] = {}

    def root(member: ActivationQuantizer) -> ActivationQuantizer:
        while parent.setdefault(member, member) is not member:
            member = parent[member]
        return member

    for node in network.graph.nodes:
        members = _meeting(network, node)
        for member in members[1:]:
            parent[root(member)] = root(members[0])
    groups: dict[ActivationQuantizer, list[ActivationQuantizer]] = {}
    for member in parent:
        groups.setdefault(root(member), []).append(member)
    return list(groups.values())


def _meeting(network: fx.GraphModule, node: fx.Node) -> list[ActivationQuantizer]:
    """The quantizers of a joint's inputs and of its result; none unless all of them are in use."""
    if not (graph.is_add(network, node) or graph.calls(network, node, graph.CONCAT)):
        return []
    ends = [graph.origin(network, source) for source in node.all_input_nodes] + list(node.users)
    found = [quantizer_of(network, end) for end in ends]
    members = [each for each in found if each is not None and not each.bypassed]
    return members if len(members) == len(ends) else []

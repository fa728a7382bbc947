"""A traced network cut at spots into pieces that share its modules.

    run(x, 0, n) = network(x)    run(run(x, i, j), j, k) = run(x, i, k)    n = number of spots + 1

Piece i computes from the value at spot i - 1 (the input for the first) to the value at spot i (the logits
for the last). A spot is a cut if everything that is computed before it is seen after it through its value
alone. Modules are called on the network itself: pieces follow its views, quantizers and modes, and move
its BatchNorm statistics as the whole would.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial

from torch import Tensor, fx

from deploy.errors import ConfigError
from toolchain.distillation.locating import LOGITS, locate, places
from toolchain.distillation.overwriting import is_overwritten
from toolchain.distillation.tapping import copied, derived, require_tensor
from toolchain.quantization.residual_kernels import whole


class Slices:
    """The pieces of a network; made by `slice_network`.

    Attributes:
        spots: Where it is cut, in the order of execution.
    """

    spots: tuple[str, ...]

    def __init__(self, network: fx.GraphModule, spots: tuple[str, ...]) -> None:
        self.spots = spots
        self._network = network

    def __len__(self) -> int:
        """The number of pieces."""
        return len(self.spots) + 1

    def run(self, values: Tensor, begin: int, end: int) -> Tensor:
        """The pieces ``begin`` to ``end - 1``, one after the other.

        Args:
            values: At the spot where piece ``begin`` starts; the input [B, C, H, W] for piece 0. They are
                not overwritten.
            begin: Index of the first piece.
            end: Index of the piece at which to stop; ``len(self)`` gives the logits.

        Raises:
            IndexError: Not 0 <= begin <= end <= number of pieces.
        """
        if not 0 <= begin <= end <= len(self):
            raise IndexError(f"pieces {begin} to {end} of {len(self)}")
        for piece in range(begin, end):
            first, last = (None, *self.spots, None)[piece : piece + 2]
            build = partial(_piece, self._network, first, last)
            forward = derived(self._network, ("piece", first, last), build)
            values = require_tensor(last or LOGITS, forward(self._network, values))
        return values


def slice_network(network: fx.GraphModule, spots: Sequence[str]) -> Slices:
    """Cut ``network`` at ``spots``, which are in the order of execution.

    Raises:
        ConfigError: An unknown spot, spots in another order, or a value that goes round one.
    """
    graph = whole(network)
    order = {node: position for position, node in enumerate(graph.nodes)}
    cuts = {spot: order[locate(network, graph, spot)] for spot in spots}
    if list(cuts.values()) != sorted(cuts.values()) or len(cuts) < len(spots):
        right = ", ".join(sorted(cuts, key=cuts.__getitem__))
        raise ConfigError(
            f"distil.spot: cut at {', '.join(spots)}; accepted are different spots in the order of "
            f"execution; give {right}"
        )
    for spot in cuts:
        _require_cut(network, graph, spot)
    return Slices(network, tuple(spots))


def _require_cut(network: fx.GraphModule, graph: fx.Graph, spot: str) -> None:
    cut = locate(network, graph, spot)
    fixed, before = _fixed(graph), set()
    for node in graph.nodes:
        before.add(node)
        if node is cut:
            break
    for node in graph.nodes:
        for source in node.all_input_nodes if node not in before else ():
            if source in before and source is not cut and source not in fixed:
                names = {value: path for path, value in places(network, graph).items()}
                raise ConfigError(
                    f"distil.spot: the network cannot be cut at {spot!r}, because the value of "
                    f"{names.get(source, source.name)!r} goes round it to {names.get(node, node.name)!r};"
                    " accepted are spots that everything passes through; choose the end of a block"
                )


def _fixed(graph: fx.Graph) -> set[fx.Node]:
    """Values that do not depend on the input, such as an embedding of positions: any piece may make them."""
    fixed: set[fx.Node] = set()
    for node in graph.nodes:
        if node.op != "placeholder" and fixed.issuperset(node.all_input_nodes):
            fixed.add(node)
    return fixed


def _piece(network: fx.GraphModule, begin: str | None, end: str | None) -> fx.Graph:
    """The graph from the value at ``begin`` (None: the input) to the one at ``end`` (None: the output)."""
    graph = whole(network)
    nodes, fixed = list(graph.nodes), _fixed(graph)
    (entry,) = (node for node in nodes if node.op == "placeholder")
    first = entry if begin is None else locate(network, graph, begin)
    last = nodes[-1] if end is None else locate(network, graph, end)
    piece = fx.Graph()
    start = piece.placeholder("values")
    copies = {first: start}

    def copy(node: fx.Node) -> fx.Node:
        if (
            node not in copies
        ):  # sources that are missing are fixed ones: others would go round the cut
            copies[node] = piece.node_copy(node, copy)
        return copies[node]

    for node in nodes[nodes.index(first) + 1 : nodes.index(last) + 1]:
        if node not in fixed:
            copy(node)
    if last.op != "output":
        piece.output(copies[last])
    if is_overwritten(network, start):
        with piece.inserting_after(start):
            kept = piece.call_function(copied, (start,))
        start.replace_all_uses_with(kept, delete_user_cb=lambda user: user is not kept)
    return piece

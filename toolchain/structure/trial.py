"""The proof that a group may be cut: the cut network is run and compared with the masked one.

    slim(x) = masked(x)    where masked has zeros for every tensor entry that slim has lost

Weights and BatchNorm statistics are drawn anew for the trial: only the wiring is on trial, and a
trained network may hide a wrong cut behind weights that happen to be zero.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Iterable, Sequence

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.modules.conv import _ConvNd, _ConvTransposeNd

from toolchain.models.shortcut import PadShortcut
from toolchain.structure.cost import evaluating
from toolchain.structure.plan import Axis, Group
from toolchain.structure.slim import axis_size, slice_module

TOLERANCE = 1e-9  # of the largest output, in float64
Gone = dict[tuple[str, str], set[int]]


class Trial:
    """A private copy of a network on which cuts are tried and undone."""

    def __init__(self, network: nn.Module, input_shape: Sequence[int], seed: int = 0) -> None:
        self._network = copy.deepcopy(network).double()
        self._random = torch.Generator().manual_seed(seed)
        self._input = torch.randn(2, *input_shape, dtype=torch.float64, generator=self._random)
        self._randomise()

    def failures(self, groups: Sequence[Group]) -> dict[str, str]:
        """Why each group that cannot be cut cannot, by name; all are tried at once and then halved."""
        found: dict[str, str] = {}
        rest = list(groups)
        while rest and self._difference(rest) is not None:
            found |= self._search(rest)
            rest = [group for group in rest if group.name not in found]
        return found

    def _search(self, groups: Sequence[Group]) -> dict[str, str]:
        reason = self._difference(groups)
        if reason is None:
            return {}
        if len(groups) == 1:
            return {groups[0].name: reason}
        half = len(groups) // 2
        found = self._search(groups[:half]) | self._search(groups[half:])
        if found:
            return found
        together: list[Group] = []  # each half is right, both are not: add one by one
        for group in groups:
            reason = self._difference([*together, group])
            if reason is None:
                together.append(group)
            else:
                found[group.name] = f"cannot be cut together with {together[-1].name!r}: {reason}"
        return found

    def _difference(self, groups: Iterable[Group]) -> str | None:
        gone: Gone = {}
        for group in groups:
            removed = torch.randperm(group.channels, generator=self._random)
            for part in group.slices:
                positions = gone.setdefault((part.module, part.axis), set())
                for channel in removed[: max(1, group.channels // 2)].tolist():
                    positions.update(part.index[channel])
        masked = self._run(gone, _mask)
        if isinstance(masked, str):
            return masked
        slim = self._run(gone, _slice)
        if isinstance(slim, str):
            return f"the network fails once it is cut ({slim})"
        if slim.shape != masked.shape:
            return "network output"
        scale = max(1.0, float(masked.abs().max()))
        difference = float((slim - masked).abs().max()) / scale
        if not difference <= TOLERANCE:  # NaN is a failure too
            return f"the cut network's outputs differ from the masked one's by {difference:.2g}"
        return None

    def _run(
        self, gone: Gone, change: Callable[[nn.Module, set[int], set[int]], None]
    ) -> Tensor | str:
        """The output with ``change`` applied to the modules concerned, or the words of a crash."""
        originals = {name: self._network.get_submodule(name) for name, _ in gone}
        try:
            for name, module in originals.items():
                changed = copy.deepcopy(module)
                change(changed, gone.get((name, "out"), set()), gone.get((name, "in"), set()))
                self._place(name, changed)
            with evaluating(self._network):
                output = self._network(self._input)
        except Exception as error:  # whatever the user's forward raises on a wrong shape
            return f"{type(error).__name__}: {' '.join(str(error).split())[:160]}"
        finally:
            for name, module in originals.items():
                self._place(name, module)
        return output

    def _place(self, name: str, module: nn.Module) -> None:
        parent, _, leaf = name.rpartition(".")
        self._network.get_submodule(parent)._modules[leaf] = module

    def _randomise(self) -> None:
        """Weights of unit gain, and BatchNorm statistics near those that the weights give."""
        norms = [m for m in self._network.modules() if isinstance(m, _BatchNorm)]
        with torch.no_grad():
            for module in self._network.modules():
                if isinstance(module, _ConvNd | nn.Linear):
                    fan_in = max(1, module.weight[0].numel())
                    self._fill(module.weight, 0.0, math.sqrt(2 / fan_in))
                    if module.bias is not None:
                        self._fill(module.bias, 0.0, 0.1)
            for norm in norms:
                norm.reset_running_stats()
                norm.momentum = 1.0
            with evaluating(self._network):
                for norm in norms:
                    norm.training = True
                self._network(self._input)
            for norm in norms:
                if norm.running_mean is not None and norm.running_var is not None:
                    noise = torch.empty_like(norm.running_mean)
                    norm.running_mean += 0.1 * self._fill(noise, 0.0, 1.0)
                    norm.running_var.mul_(0.75 + 0.5 * self._uniform(noise)).add_(1e-3)
                if norm.affine:
                    norm.weight.copy_(0.5 + self._uniform(norm.weight))
                    self._fill(norm.bias, 0.0, 0.3)

    def _fill(self, tensor: Tensor, mean: float, deviation: float) -> Tensor:
        values = torch.randn(tensor.shape, dtype=tensor.dtype, generator=self._random)
        return tensor.copy_(values * deviation + mean)

    def _uniform(self, like: Tensor) -> Tensor:
        return torch.rand(like.shape, dtype=like.dtype, generator=self._random)


def _mask(module: nn.Module, out: set[int], in_: set[int]) -> None:
    """Zeros in place of the positions that are gone, written apart from the slicing on purpose."""
    gone_O, gone_I = sorted(out), sorted(in_)
    with torch.no_grad():
        if isinstance(module, PadShortcut):
            source_O = module.source_O.clone()
            source_O[gone_O] = -1
            source_O[torch.isin(source_O, torch.tensor(gone_I, dtype=torch.long))] = -1
            module.source_O = source_O
            return
        if isinstance(module, _BatchNorm):
            if module.affine:
                module.weight[gone_O] = 0
                module.bias[gone_O] = 0
            return
        weight = getattr(module, "weight", None)
        if not isinstance(weight, Tensor):
            return
        view = weight.transpose(0, 1) if isinstance(module, _ConvTransposeNd) else weight
        view[gone_O] = 0
        if gone_I:
            view[:, gone_I] = 0
        bias = getattr(module, "bias", None)
        if isinstance(bias, Tensor):
            bias[gone_O] = 0


def _slice(module: nn.Module, out: set[int], in_: set[int]) -> None:
    def kept(axis: Axis, gone: set[int]) -> list[int] | None:
        return [i for i in range(axis_size(module, axis)) if i not in gone] if gone else None

    slice_module(module, kept("out", out), kept("in", in_))

"""What the dean sees: a row of numbers for each term of distillation and each layer that is pruned.

    cosine          of the distillation's and the task's gradient, running mean, in [-1, 1]
    distil          log of the distillation loss's running mean over its first one
    task gradient   log of its norm's running mean over the first
    distil gradient log of its norm's running mean over the task gradient's
    mean, low       of |V_g| / sqrt|g|: log of the mean over the first one; lowest decile over the mean
    sparsity        share of channels whose Z_g is zero, in [0, 1]
    depth           share of the student that lies before, in [0, 1]
    progress        share of the training that is done, in [0, 1]
    layer           1 for a layer that is pruned, 0 for a term

A term's row is about its own layer (see ``distillability``), and its channel numbers are the means over
the pruned layers in there; a pruned layer's row is about its own weights, and about all distillation
terms at their present strengths together. Logarithms are cut off at 5. Nothing carries a gradient.

Liu et al. 2022 (IEEE TPAMI 45(3), doc. 9804342) let the dean look at "the current teacher and student";
which numbers is a **reconstruction**. Axes: R rows, N parameter tensors.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from toolchain.dean.distillability import cosine, own_layers
from toolchain.dean.gradients import TermGradients, products
from toolchain.distillation.controllers.sparsifier import LayerState, Sparsifier

FEATURES = (
    "cosine",
    "distil",
    "task_gradient",
    "distil_gradient",
    "mean",
    "low",
    "sparsity",
    "depth",
    "progress",
    "layer",
)
LOG_LIMIT = 5.0


@dataclass(frozen=True)
class Look:
    """What one probe found, before any averaging.

    Attributes:
        names: Of the terms, then of the pruned layers.
        terms: How many of them are terms.
        cosines: Of each row, over its own weights.
        cosines_all: Of each term, over all weights.
        raw: For each row the numbers that are averaged: cosine, distillation loss, norm of the task's
            gradient, norm of the distillation's.
        channels: For each row mean, low and sparsity.
        depth: Of each row.
    """

    names: tuple[str, ...]
    terms: int
    cosines: tuple[float, ...]
    cosines_all: tuple[float, ...]
    raw: tuple[tuple[float, float, float, float], ...]
    channels: tuple[tuple[float, float, float], ...]
    depth: tuple[float, ...]


def look(
    gradients: TermGradients,
    parameters: Sequence[nn.Parameter],
    strengths: Sequence[float],
    sparsifier: Sparsifier | None,
) -> Look:
    """Reduce the gradients of one probe batch, and the channels' norms, to a few numbers per row.

    Args:
        gradients: Of task and terms.
        parameters: What they are gradients of.
        strengths: Of the terms, now.
        sparsifier: Whose layers are looked at, if any.
    """
    terms_TP, task_P = gradients.terms_TP, gradients.task_P
    weights_T = terms_TP.new_tensor(strengths)
    # One more row: what all terms together do at their present strengths.
    kd_TP = torch.cat([terms_TP, (weights_T[:, None] * terms_TP).sum(0, keepdim=True)])
    both_TN = products(kd_TP, task_P[None], parameters)
    kd_TN = products(kd_TP, kd_TP, parameters)
    task_N = products(task_P[None], task_P[None], parameters)[0]
    position = {id(parameter): n for n, parameter in enumerate(parameters)}
    states: Mapping[str, LayerState] = {}
    layers: dict[str, list[int]] = {}
    if sparsifier is not None and sparsifier.layers:
        states = sparsifier.observe()
        layers = {
            name: [position[id(p)] for p in sparsifier.parameters(name) if id(p) in position]
            for name in sparsifier.layers
        }
    names, cosines, raw, channels, depth = [], [], [], [], []

    def add(name: str, row: int, own: Sequence[int], value: float) -> None:
        both, kd, task = (float(v[list(own)].sum()) for v in (both_TN[row], kd_TN[row], task_N))
        names.append(name)
        cosines.append(cosine(both, kd, task))
        raw.append((cosines[-1], value, task**0.5, kd**0.5))

    for row, own in enumerate(own_layers(gradients.reached)):
        add(gradients.names[row], row, own, gradients.values[row])
        inside = [states[name] for name, held in layers.items() if set(held) & set(own)]
        channels.append(_mean(inside))
        depth.append(sum(gradients.reached[row]) / max(1, len(parameters)))
    together = sum(s * value for s, value in zip(strengths, gradients.values, strict=True))
    for number, (name, held) in enumerate(layers.items()):
        add(name, len(gradients.names), held, together)
        state = states[name]
        channels.append((state.mean, state.low, state.sparsity))
        depth.append((number + 1) / len(layers))
    whole = [
        cosine(float(both_TN[row].sum()), float(kd_TN[row].sum()), float(task_N.sum()))
        for row in range(len(gradients.names))
    ]
    return Look(
        names=tuple(names),
        terms=len(gradients.names),
        cosines=tuple(cosines),
        cosines_all=tuple(whole),
        raw=tuple(raw),
        channels=tuple(channels),
        depth=tuple(depth),
    )


def _mean(states: Sequence[LayerState]) -> tuple[float, float, float]:
    if not states:
        return (0.0, 0.0, 0.0)
    count = len(states)
    return (
        sum(state.mean for state in states) / count,
        sum(state.low for state in states) / count,
        sum(state.sparsity for state in states) / count,
    )


class Memory:
    """Running means of what the probes find, and what they were at first.

    Args:
        decay: Of the running means, per probe, in [0, 1); their start is corrected for.
    """

    def __init__(self, decay: float) -> None:
        self._decay = decay
        self._mean: dict[str, list[float]] = {}
        self._first: dict[str, list[float]] = {}
        self._count: dict[str, int] = {}

    def add(self, seen: Look) -> None:
        """Take in one probe."""
        for name, raw, channels in zip(seen.names, seen.raw, seen.channels, strict=True):
            count = self._count.get(name, 0)
            mean = self._mean.get(name, [0.0] * len(raw))
            keep = self._decay * (1 - self._decay**count) / (1 - self._decay ** (count + 1))
            self._mean[name] = [keep * a + (1 - keep) * b for a, b in zip(mean, raw, strict=True)]
            self._count[name] = count + 1
            self._first.setdefault(name, [*raw, *channels])

    def cosine(self, name: str) -> float:
        """The running mean of a row's cosine."""
        return self._mean[name][0]

    def features(self, seen: Look, progress: float) -> Tensor:
        """The dean's input [R, features], float32."""
        rows = []
        for number, name in enumerate(seen.names):
            cos, distil, task, kd = self._mean[name]
            _, first_distil, first_task, _, first_mean, _, _ = self._first[name]
            mean, low, sparsity = seen.channels[number]
            rows.append(
                [
                    cos,
                    _log_ratio(distil, first_distil),
                    _log_ratio(task, first_task),
                    _log_ratio(kd, task),
                    _log_ratio(mean, first_mean),
                    low / mean if mean > 0 else 0.0,
                    sparsity,
                    seen.depth[number],
                    progress,
                    float(number >= seen.terms),
                ]
            )
        return torch.tensor(rows).view(-1, len(FEATURES))

    def state_dict(self) -> dict[str, Any]:
        """Means, firsts and counts."""
        return {"mean": dict(self._mean), "first": dict(self._first), "count": dict(self._count)}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restore what ``state_dict`` returned."""
        self._mean, self._first = dict(state["mean"]), dict(state["first"])
        self._count = dict(state["count"])


def _log_ratio(now: float, then: float) -> float:
    """log(now / then), within the limits; 0 where one of them is not above zero."""
    if now <= 0 or then <= 0:
        return 0.0
    return max(-LOG_LIMIT, min(LOG_LIMIT, math.log(now / then)))

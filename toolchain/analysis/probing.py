"""Distillability on probe batches: by layer for what the recipe distils, and by term at its own spot.

    by layer   cos(grad_{W_l} sum_i s_i L_i, grad_{W_l} L_ce)     s_i the recipe's strengths
    by term    cos(grad_{W_i} L_i, grad_{W_i} L_ce)               W_i between the spot before i's and its own

Liu, Cao, Li, Hu, Maybank 2022 (IEEE TPAMI 45(3)); see ``toolchain.dean.distillability`` for what of it is
reconstruction. The network is in training mode, as in the step that would follow, and left as it was.
Axes: L layers, K probe batches, T terms, N parameter tensors.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from toolchain.dean.distillability import cosine, own_layers
from toolchain.dean.gradients import products, term_gradients, trained
from toolchain.distillation.lessons import School

_LATENT = ".parametrizations.weight.original"


@dataclass(frozen=True)
class Probed:
    """What the probe batches say at one time.

    Attributes:
        step: Optimizer steps done.
        layers: A cosine for each probe batch, by layer in the order of the network; only layers that
            distillation reaches.
        terms: Likewise by term, in order of depth.
    """

    step: int
    layers: Mapping[str, Sequence[float]]
    terms: Mapping[str, Sequence[float]]

    def over_layers(self) -> list[float]:
        """The mean over the layers, for each probe batch."""
        means_K: list[float] = samples(self.layers).mean(0).tolist() if self.layers else []
        return means_K

    def to_dict(self) -> dict[str, Any]:
        return {"step": self.step, "layers": dict(self.layers), "terms": dict(self.terms)}

    @classmethod
    def from_dict(cls, record: Mapping[str, Any]) -> Probed:
        return cls(record["step"], record["layers"], record["terms"])


def samples(found: Mapping[str, Sequence[float]]) -> np.ndarray:
    """[L, K] of what ``Probed`` holds by name."""
    return np.array(list(found.values()), dtype=np.float64) if found else np.zeros((0, 0))


def probe(school: School, step: int, count: int, size: int) -> Probed:
    """Distillability on the first ``count`` probe batches, which are the same at every step."""
    assert school.probe is not None
    school.prepare()
    parameters = trained(school)
    layers = layers_of(school.network, parameters)
    strengths = np.array([school.base.get(term.name, 0.0) for term in school.terms])
    by_layer: dict[str, list[float]] = {}
    by_term: dict[str, list[float]] = {}
    depth: dict[str, int] = {}
    with _training(school.network):
        for number in range(count):
            found = term_gradients(school, school.probe(number, size), parameters)
            kd_P = _weighted(found.terms_TP, strengths)
            total_N = _cosines(kd_P[None], found.task_P, parameters)
            for name, place in layers.items():
                value = total_N((place,), 0)
                if value is not None:
                    by_layer.setdefault(name, []).append(value)
            each = _cosines(found.terms_TP, found.task_P, parameters)
            for row, own in enumerate(own_layers(found.reached)):
                value = each(own, row)
                if value is not None:
                    by_term.setdefault(found.names[row], []).append(value)
                    depth[found.names[row]] = sum(found.reached[row])
    whole = {name: values for name, values in by_layer.items() if len(values) == count}
    ordered = sorted(by_term, key=lambda name: depth[name])
    return Probed(
        step, whole, {name: by_term[name] for name in ordered if len(by_term[name]) == count}
    )


def layers_of(network: nn.Module, parameters: Sequence[nn.Parameter]) -> dict[str, int]:
    """Places in ``parameters`` of the weights with several axes, by the path of their module."""
    places = {id(parameter): place for place, parameter in enumerate(parameters)}
    found = {}
    for name, parameter in network.named_parameters():
        if id(parameter) in places and parameter.dim() > 1:
            module = name.removesuffix(_LATENT).removesuffix(".weight")
            found[module] = places[id(parameter)]
    return found


def _weighted(terms_TP: Tensor, strengths_T: np.ndarray) -> Tensor:
    weights_T = torch.as_tensor(strengths_T, dtype=terms_TP.dtype, device=terms_TP.device)
    return weights_T @ terms_TP


def _cosines(
    left_TP: Tensor, task_P: Tensor, parameters: Sequence[nn.Parameter]
) -> Callable[[Sequence[int], int], float | None]:
    """The cosine over some tensors in a row; None where the row or the task does not move them."""
    both_TN = products(left_TP, task_P[None], parameters)
    left_TN = products(left_TP, left_TP, parameters)
    task_N = products(task_P[None], task_P[None], parameters)[0]

    def of(tensors: Sequence[int], row: int) -> float | None:
        chosen = list(tensors)
        parts = (both_TN[row], left_TN[row], task_N)
        product, left, task = (float(values_N[chosen].sum()) for values_N in parts)
        return cosine(product, left, task) if left > 0 and task > 0 else None

    return of


@contextmanager
def _training(network: nn.Module) -> Iterator[None]:
    """Inside the block every module trains; afterwards each has its own mode again."""
    modes = {module: module.training for module in network.modules()}
    network.train()
    try:
        yield
    finally:
        for module, mode in modes.items():
            module.training = mode

"""What the dean sees: running means corrected for their start, ratios to what was first, finite always."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from toolchain.dean.gradients import term_gradients, trained
from toolchain.dean.state import FEATURES, LOG_LIMIT, Look, Memory, look
from toolchain.distillation.controllers.sparsifier import LayerState
from toolchain.distillation.lessons import School


def seen(raw: tuple[float, float, float, float], mean: float = 0.0, low: float = 0.0) -> Look:
    return Look(("one",), 1, (raw[0],), (raw[0],), (raw,), ((mean, low, 0.25),), (0.5,))


def column(memory: Memory, what: Look, name: str, progress: float = 0.0) -> float:
    return memory.features(what, progress)[0, FEATURES.index(name)].item()


def test_running_means_are_corrected_for_their_start() -> None:
    memory = Memory(0.9)
    values = [0.5, -0.2, 0.3]
    for value in values:
        memory.add(seen((value, 1.0, 1.0, 1.0)))
    weights = [0.9 ** (len(values) - 1 - n) for n in range(len(values))]
    expected = sum(w * v for w, v in zip(weights, values, strict=True)) / sum(weights)
    assert memory.cosine("one") == pytest.approx(expected)


def test_without_a_decay_the_last_value_counts() -> None:
    memory = Memory(0.0)
    for value in (0.5, -0.2):
        memory.add(seen((value, 1.0, 1.0, 1.0)))
    assert memory.cosine("one") == pytest.approx(-0.2)


def test_losses_and_norms_are_seen_relative_to_the_first() -> None:
    memory = Memory(0.0)
    memory.add(first := seen((0.1, 2.0, 4.0, 8.0), mean=3.0, low=1.5))
    assert column(memory, first, "distil") == column(memory, first, "task_gradient") == 0.0
    memory.add(later := seen((0.1, 1.0, 2.0, 8.0), mean=1.5, low=0.3))
    found = {name: column(memory, later, name, 0.75) for name in FEATURES}
    half = torch.tensor(0.5).log().item()
    assert found["distil"] == found["task_gradient"] == found["mean"] == pytest.approx(half)
    assert found["distil_gradient"] == pytest.approx(-2 * half)
    assert found["low"] == pytest.approx(0.2)
    assert (found["sparsity"], found["depth"], found["progress"], found["layer"]) == (
        0.25,
        0.5,
        0.75,
        0,
    )


@given(
    st.lists(
        st.tuples(st.floats(-1, 1), *[st.floats(0, 1e30) for _ in range(3)]), min_size=1, max_size=4
    )
)
def test_features_are_finite_and_bounded(raws: list[tuple[float, float, float, float]]) -> None:
    memory = Memory(0.5)
    for raw in raws:
        memory.add(what := seen(raw))
    features = memory.features(what, 1.0)
    assert features.isfinite().all() and features.abs().max() <= LOG_LIMIT


def test_a_resumed_memory_is_the_same() -> None:
    memory, again = Memory(0.9), Memory(0.9)
    for value in (0.5, -0.2):
        memory.add(what := seen((value, 2.0, 1.0, 3.0), mean=1.0, low=0.1))
    again.load_state_dict(memory.state_dict())
    assert torch.equal(again.features(what, 0.3), memory.features(what, 0.3))


class Layers:
    """A sparsifier with one layer, the student's first convolution."""

    layers = ("0",)

    def __init__(self, network: nn.Module) -> None:
        self._network = network

    def parameters(self, layer: str) -> list[nn.Parameter]:
        return list(self._network.get_submodule(layer).parameters())

    def observe(self) -> dict[str, LayerState]:
        return {"0": LayerState(2.0, 0.5, 0.125)}


def test_rows_are_terms_then_pruned_layers(
    layered: Callable[..., School], make_student: Callable[..., nn.Sequential]
) -> None:
    school = layered(make_student())
    parameters = trained(school)
    assert school.probe is not None
    gradients = term_gradients(school, school.probe(0, 32), parameters)
    found = look(gradients, parameters, [0.4, 0.3, 0.2], Layers(school.network))  # type: ignore[arg-type]
    assert found.names == ("kl", "early", "late", "0") and found.terms == 3
    # The first convolution lies before the early spot: its numbers stand in that term's row too.
    assert found.channels == ((0.0,) * 3, (2.0, 0.5, 0.125), (0.0,) * 3, (2.0, 0.5, 0.125))
    assert found.depth[1] < found.depth[2] < found.depth[0] == 1.0
    sizes = [p.numel() for p in parameters]
    both = gradients.terms_TP.new_tensor([0.4, 0.3, 0.2]) @ gradients.terms_TP
    mine, task = (torch.cat(v.split(sizes)[:2]) for v in (both, gradients.task_P))
    expected = torch.cosine_similarity(mine, task, dim=0).item()
    assert found.cosines[3] == pytest.approx(expected, abs=1e-5)
    features = (memory := Memory(0.9)).add(found) or memory.features(found, 0.0)
    assert features.shape == (4, len(FEATURES)) and features[:, -1].tolist() == [0, 0, 0, 1]

"""What the bench measures: each way trains what it says, in turn, and ratios stay within a round."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch

from toolchain.dean.controller import DeanController
from toolchain.distillation.controllers.spot_adaptive.controller import SpotAdaptive
from toolchain.distillation.objective import DistillationObjective
from toolchain.quantization import kernels
from toolchain.structure.masks import hidden_share
from toolchain.training.bench.measuring import Bench
from toolchain.training.bench.ways import DEAN, FIXED, KD, PLAIN, SAKD, Ways, random_data
from toolchain.training.precision import choose_precision

COMPRESSION = ("quantization-aware", "PQK phase 1", "PQK phase 2")
TAUGHT = (KD, FIXED, DEAN, SAKD)


@pytest.fixture(autouse=True)
def few_threads() -> Iterator[None]:
    threads = torch.get_num_threads()
    yield
    torch.set_num_threads(threads)
    kernels.use_compiled(False)


def bench(group: str) -> Bench:
    precision, data = choose_precision("float32", "cpu"), random_data(2)
    return Bench(Ways(8, 8, data, precision).made(group), data, 2, precision)


def test_ways_take_turns_and_ratios_stay_within_a_round(monkeypatch: pytest.MonkeyPatch) -> None:
    """With a clock of our own: each round is slower than the last, and no ratio sees it."""
    measured = bench("all")
    names = (PLAIN, *COMPRESSION, *TAUGHT)
    assert tuple(measured.ways) == names
    calls: list[tuple[str, int]] = []
    share = dict(zip(names, (1.0, 0.8, 0.6, 0.4, 0.5, 0.5, 0.4, 0.25), strict=True))

    def train(name: str, steps: int) -> float:
        calls.append((name, steps))
        turn = (len(calls) - 1) // len(names)
        return 1000.0 * share[name] / (1 + turn)

    monkeypatch.setattr(measured, "train", train)
    modes = measured.measure(seconds=4.0, rounds=3)
    assert [name for name, _ in calls] == list(names) * 5
    assert [mode.ratios for mode in modes] == [pytest.approx((one,) * 3) for one in share.values()]
    times = {mode.name: (mode.against, mode.times) for mode in modes}
    assert times[KD] == (PLAIN, pytest.approx((2.0,) * 3))
    assert times[FIXED] == (KD, pytest.approx((1.0,) * 3))
    assert times[DEAN] == (FIXED, pytest.approx((1.25,) * 3))
    assert times[SAKD] == (KD, pytest.approx((2.0,) * 3))
    assert {mode.name: mode.at_most for mode in modes if mode.at_most} == {DEAN: 1.15, SAKD: 2.2}
    every = measured.ways[DEAN].every
    steps = dict(calls[-len(names) :])
    assert steps[DEAN] == every * round(4.0 * 500.0 * share[DEAN] / 2 / every)
    assert all(steps[name] == round(4.0 * 500.0 * share[name] / 2) for name in (PLAIN, KD, SAKD))


def test_every_way_of_compression_trains_what_it_says() -> None:
    measured = bench("compression")
    assert tuple(measured.ways) == (PLAIN, *COMPRESSION)
    hidden = {}
    for name, way in measured.ways.items():
        before = {key: value.clone() for key, value in way.network.state_dict().items()}
        assert measured.train(name, 2) > 0
        after = way.network.state_dict()
        assert any(not torch.equal(before[key], after[key]) for key in before)
        hidden[name] = hidden_share(way.network) if name.startswith("PQK") else 0.0
        assert [update.name for update in way.objective.updates] == (
            ["teacher", "student"] if name == "PQK phase 2" else ["task"]
        )
        quantized = any("quantizer" in key for key in after)
        assert quantized == (name != PLAIN)
    assert hidden["PQK phase 1"] == hidden["PQK phase 2"] > 0.5


def test_every_way_of_teaching_differs_in_its_controller_and_not_in_its_terms() -> None:
    measured = bench("distillation")
    assert tuple(measured.ways) == (PLAIN, *TAUGHT)
    terms = {}
    for name in TAUGHT:
        way = measured.ways[name]
        assert isinstance(way.objective, DistillationObjective)
        terms[name] = [term.name for term in way.objective.school.terms]
        before = {key: value.clone() for key, value in way.network.state_dict().items()}
        assert measured.train(name, 1) > 0
        after = way.network.state_dict()
        assert any(not torch.equal(before[key], after[key]) for key in before)
    assert terms[KD] == ["kl"]
    assert terms[FIXED] == terms[DEAN] == terms[SAKD]
    assert len(terms[FIXED]) == 4
    controllers = {
        name: measured.ways[name].objective.controller  # type: ignore[attr-defined]
        for name in TAUGHT
    }
    assert isinstance(controllers[DEAN], DeanController)
    assert isinstance(controllers[SAKD], SpotAdaptive)
    assert measured.ways[DEAN].every == controllers[DEAN].probe_every > 1
    assert "dean.held_out_loss" in controllers[DEAN].trail()  # its only step so far had a probe

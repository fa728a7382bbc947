"""Figures: what they draw of latencies, training and trade-offs, against independent computation."""

from __future__ import annotations

import xml.etree.ElementTree as ElementTree
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from benchmarks.page.charts.style import TEACHER, series_style
from benchmarks.page.latency_figures import latency_figures, thinned
from benchmarks.page.pareto import Candidate, front, pareto_figures
from benchmarks.page.reading import Log
from benchmarks.page.training_figures import training_figures


def tips(svg: str) -> list[str]:
    return [
        element.get("data-tip") or ""
        for element in ElementTree.fromstring(svg).iter()
        if element.get("data-tip")
    ]


@given(st.lists(st.floats(0.01, 100), min_size=1, max_size=900))
def test_a_thinned_curve_goes_through_order_statistics(samples: list[float]) -> None:
    ordered = sorted(samples)
    curve = thinned(ordered)
    assert len(curve) <= 301
    assert curve[0][0] == ordered[0]
    assert curve[-1] == (ordered[-1], 100.0)
    for value, percent in curve:
        index = round(percent * len(ordered) / 100) - 1
        assert ordered[index] == value


def model(samples: list[Any], **stated: float) -> dict[str, Any]:
    return {"latency_ms": {"samples": samples, "n": len(samples), **stated}}


def test_percentiles_are_the_stated_ones_however_many_samples_are_drawn() -> None:
    rng = np.random.default_rng(0)
    samples = rng.lognormal(0, 0.3, 50_000).tolist()
    few = {"student": model(samples, p50=1.234, p99=2.356)}
    histogram, ecdf = latency_figures(few)
    assert tips(ecdf.wide) == ["student p50 1.23\u202fms", "student p99 2.36\u202fms"]
    assert len(histogram.wide) + len(ecdf.wide) < 40_000
    assert "50\u202f000" in histogram.caption


def test_slow_outliers_are_counted_and_do_not_stretch_the_axis() -> None:
    samples = [1.0 + i / 1000 for i in range(997)] + [500.0, 600.0, 700.0]
    histogram, _ = latency_figures({"teacher": model(samples, p50=1.5)})
    assert "3 slower calls lie right of the axis" in histogram.caption


def test_histograms_hold_every_call() -> None:
    samples = np.random.default_rng(3).normal(5, 0.5, 400).tolist()
    figure = latency_figures({"teacher": model(samples), "student": model([1.0])})[0]
    assert "teacher n\u202f=\u202f400, student n\u202f=\u202f1" in figure.caption
    assert [entry.name for entry in figure.legend] == ["teacher", "student"]


def test_values_that_are_no_latency_are_left_out() -> None:
    figures = latency_figures({"student": model([1.0, None, "x", float("nan"), -1.0, 2.0])})
    assert "n\u202f=\u202f2." in figures[0].caption


def test_without_samples_the_percentiles_are_drawn() -> None:
    (figure,) = latency_figures(
        {"teacher": {"latency_ms": {"p50": 1.0, "p99": 3.0, "p99.9": None}}}
    )
    assert tips(figure.wide) == ["teacher p50 1.00\u202fms", "teacher p99 3.00\u202fms"]


def test_without_anything_there_is_no_figure() -> None:
    assert latency_figures({}) == []
    assert latency_figures({"teacher": {"latency_ms": None}, "student": None}) == []


@given(st.lists(st.tuples(st.integers(1, 9), st.integers(1, 9)), min_size=1, max_size=12))
def test_the_front_is_what_nothing_dominates(points: list[tuple[int, int]]) -> None:
    expected = {
        (cost, accuracy)
        for cost, accuracy in points
        if not any((c <= cost and a >= accuracy) and (c, a) != (cost, accuracy) for c, a in points)
    }
    found = front([(float(c), float(a)) for c, a in points])
    assert found == sorted(expected)


def candidate(name: str, accuracy: float | None, **costs: float) -> Candidate:
    return Candidate(
        name, name, series_style(0), accuracy, {(kind, "here"): v for kind, v in costs.items()}
    )


def test_a_figure_for_each_cost_that_two_share() -> None:
    figures = pareto_figures(
        [
            candidate("a", 90.0, latency=1.0, size=100, energy=0.5),
            candidate("b", 89.0, latency=0.5, size=300),
            candidate("no accuracy", None, latency=0.1),
        ]
    )
    assert [figure.title for figure in figures] == [
        "Accuracy against latency",
        "Accuracy against size",
    ]
    assert figures[0].caption.startswith("On the front: a, b.")
    assert figures[1].caption.startswith("On the front: a.")
    assert tips(figures[0].wide) == [
        "a: 90.00\u202f% at 1.00\u202fms",
        "b: 89.00\u202f% at 0.500\u202fms",
    ]


def test_different_conditions_are_never_on_one_axis() -> None:
    one = Candidate("a", "a", series_style(0), 90.0, {("latency", "board"): 1.0})
    two = Candidate("b", "b", series_style(1), 91.0, {("latency", "server"): 0.1})
    assert pareto_figures([one, two]) == []


def test_a_comparison_needs_two_students() -> None:
    teacher = Candidate("t", "teacher", TEACHER, 91.0, {("latency", "here"): 2.0})
    one, two = candidate("a", 90.0, latency=1.0), candidate("b", 89.0, latency=0.5)
    assert pareto_figures([teacher, one], students=2) == []
    assert len(pareto_figures([teacher, one, two], students=2)) == 1
    assert len(pareto_figures([teacher, one])) == 1


def rows(n: int, **numbers: float) -> tuple[dict[str, Any], ...]:
    return tuple({"kind": "step", "step": step + 1, **numbers} for step in range(n))


def test_training_has_a_figure_for_each_kind_of_number() -> None:
    log = Log(
        "pqk",
        rows(
            5,
            **{"loss": 1.0, "kl": 0.5, "strength.kl": 0.9, "sparsity": 0.2, "bits": 8.0, "lr": 0.1},
        ),
        0,
    )
    end = ({"kind": "epoch", "step": 5, "epoch": 1.0, "validation_top1": 88.0},)
    titles = [f.title for f in training_figures([Log("pqk", log.rows + end, 0)], 91.0)]
    assert titles == ["Loss", "Terms of the loss", "Accuracy", "Sparsity", "Bits of the weights",
                      "Strengths of supervision", "Learning rate"]  # fmt: skip


def test_terms_are_drawn_as_what_they_add_to_the_loss() -> None:
    first = rows(2, **{"loss": 0.5, "task": 2.0, "kl": 0.5, "at@layer1.0": 0.001,
                       "strength.task": 0.1, "strength.kl": 0.4, "strength.at@layer1.0": 100.0})  # fmt: skip
    second = rows(2, **{"student.loss": 0.9, "student.kl": 3.0, "student.strength.kl": 0.3,
                        "teacher.task": 0.7})  # fmt: skip
    figures = training_figures([Log("recover", first, 0), Log("pqk", second, 0)])
    (figure,) = [each for each in figures if each.title == "Terms of the loss"]
    shown = dict.fromkeys(tips(figure.wide))
    assert list(shown) == [
        "task 0.2000", "kl 0.2000", "at@layer1, 0 0.1000", "student, kl 0.9000",
        "teacher, task 0.7000",
    ]  # fmt: skip
    contributions = [float(tip.split()[-1]) for tip in list(shown)[:3]]
    assert sum(contributions) == pytest.approx(first[0]["loss"])
    assert "times its strength" in figure.caption
    plain = training_figures([Log("teacher", rows(2, loss=1.0, task=0.25), 0)])[1]
    assert (plain.title, plain.caption) == ("Terms of the loss", "")
    assert set(tips(plain.wide)) == {"task 0.2500"}


def test_stages_lie_apart_and_short_ones_keep_their_name() -> None:
    logs = [Log("long", rows(10_000, loss=1.0), 0), Log("short", rows(3, loss=0.5), 0)]
    (figure,) = training_figures(logs)
    svg = ElementTree.fromstring(figure.wide)
    bands = [
        (float(rect.get("x") or 0), float(rect.get("width") or 0))
        for rect in svg.iter("rect")
        if "band" in (rect.get("class") or "")
    ]
    assert bands[0][0] + bands[0][1] + 5 < bands[1][0]
    assert bands[1][1] > 50
    assert {"long", "short", "10\u202f000", "3"} <= {text.text for text in svg.iter("text")}
    assert len(figure.wide) < 20_000


def test_missing_and_empty_logs_draw_nothing() -> None:
    assert training_figures([]) == []
    assert training_figures([Log("pqk", (), 0)]) == []
    unknown = ({"kind": "step", "step": 1, "loss": None}, {"kind": "step", "step": 2, "loss": None})
    assert training_figures([Log("pqk", unknown, 0)]) == []


def test_of_many_networks_only_the_front_is_named_in_the_drawing() -> None:
    many = [candidate(f"net{i}", 80.0 - i, latency=1.0 + i) for i in range(20)]
    (figure,) = pareto_figures(many)
    names = [text.text for text in ElementTree.fromstring(figure.wide).iter("text")]
    assert [name for name in names if name and name.startswith("net")] == ["net0"]
    assert len(figure.legend) == 20

"""Trails: every strength is drawn, coloured by its depth, and a long run costs no more than a short one."""

from __future__ import annotations

import json
import re
import xml.etree.ElementTree as ElementTree
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest

from benchmarks.page.blocks import Figure
from benchmarks.page.envelope import Envelope
from benchmarks.page.making import write_page
from benchmarks.page.reading import Log, read_sources
from benchmarks.page.trail_figures import (
    FALLBACK,
    JUDGED,
    MOVED,
    apart,
    by_depth,
    fallbacks,
    trail_figures,
    unmoved,
)

Write = Callable[..., Path]
DEPTH = [f"layer{index}" for index in range(12)]


def log(numbers: Mapping[str, list[float]], stage: str = "recover") -> Log:
    trail = {}
    for name, values in numbers.items():
        trail[name] = Envelope()
        for step, value in enumerate(values, start=1):
            trail[name].add(step, value)
    return Log(stage, (), 0, trail)


def lines(figure: Figure) -> list[ElementTree.Element]:
    svg = ElementTree.fromstring(figure.wide)
    return [path for path in svg.iter("path") if "line" in (path.get("class") or "").split()]


def ends(figure: Figure) -> list[str]:
    svg = ElementTree.fromstring(figure.wide)
    return [text.text or "" for text in svg.iter("text") if "ending" in (text.get("class") or "")]


def test_each_family_has_its_own_figure() -> None:
    figures = trail_figures(
        [
            log(
                {
                    "strength.task": [0.1, 0.1],
                    "strength.kl": [0.9, 0.8],
                    "sparsity_strength.conv1": [1.0, 1.2],
                    "distillability.kl": [0.5, 0.4],
                    "distillability_now.kl": [0.9, 0.1],
                    "distilled.layer1": [0.2, 0.3],
                    "temperature": [4.0, 4.5],
                    "sparsity.conv1": [0.0, 0.25],
                    "t.kl": [0.3, 0.2],
                }
            )
        ]
    )
    assert [figure.title for figure in figures] == [
        "Distillation strengths",
        "Sparsity strengths",
        "Distillability",
        "Share distilled at each spot",
        "Temperature of distillation",
        "Sparsity of each layer",
    ]
    assert ends(figures[0]) == ["kl", "task"]  # from top to bottom, as the lines end
    assert ends(figures[4]) == []  # a single line is named by its title


def test_nothing_trailed_is_no_figure() -> None:
    assert trail_figures([]) == []
    assert trail_figures([Log("recover", ({"step": 1, "loss": 1.0},), 0)]) == []


def test_depth_is_an_order_of_colours_and_every_layer_is_named() -> None:
    numbers = {f"strength.at@{name}": [1.0 + index, 2.0] for index, name in enumerate(DEPTH)}
    (figure,) = trail_figures(
        [log({"strength.kl": [1.5, 3.0], "strength.task": [1.0, 1.0], **numbers})]
    )
    classes = [(path.get("class") or "").split()[1] for path in lines(figure)]
    assert classes[0] == "quiet"  # the labels' own term has no depth
    shades = [int(name[1:]) for name in classes[1:]]
    assert shades == sorted(shades)
    assert (shades[0], shades[-1]) == (0, 11)
    assert sorted(ends(figure)) == sorted([*DEPTH, "kl", "task"])
    assert [key.name for key in figure.legend] == ["first to last layer", "at", "kl"]


def test_two_teachers_at_one_spot_share_its_colour_and_not_its_dashes() -> None:
    names = [f"strength.at@layer{i}{teacher}" for i in (1, 2, 3) for teacher in ("", ":in-network")]
    (figure,) = trail_figures([log({name: [1.0, 1.0] for name in names})])
    drawn = [(path.get("class"), path.get("stroke-dasharray")) for path in lines(figure)]
    assert len(set(drawn)) == 6
    assert len({colour for colour, _ in drawn}) == 3
    assert [key.name for key in figure.legend][1:] == ["at", "at, in-network"]


def test_strengths_of_other_magnitudes_have_an_axis_of_their_own() -> None:
    figures = trail_figures(
        [
            log(
                {
                    "strength.task": [0.1, 0.1],
                    "strength.kl": [0.9, 0.9],
                    "strength.at@a": [1000.0, 900.0],
                }
            )
        ]
    )
    assert [figure.title for figure in figures] == [
        "Distillation strengths: task, kl",
        "Distillation strengths: at",
    ]


@pytest.mark.parametrize(
    ("highest", "groups"),
    [
        ({}, []),
        ({"a": 0.0, "b": 0.0}, [["a", "b"]]),
        ({"a": 0.0, "b": 5.0}, [["a", "b"]]),
        ({"a": 30.0, "b": 1.0}, [["a", "b"]]),
        ({"a": 31.0, "b": 1.0, "c": 0.0}, [["b", "c"], ["a"]]),
    ],
)
def test_what_shares_an_axis(highest: dict[str, float], groups: list[list[str]]) -> None:
    assert apart(highest) == groups


def test_layers_keep_their_order() -> None:
    names = ["sparsity.b", "sparsity.a", "sparsity.c"]
    assert by_depth(names) == names
    mixed = ["distilled.logits", "distilled.layer2", "distilled.layer1"]
    assert by_depth(mixed) == ["distilled.layer2", "distilled.layer1", "distilled.logits"]


def test_stages_without_a_family_take_no_room_in_its_figure() -> None:
    figures = trail_figures(
        [log({"temperature": [4.0, 5.0]}, "recover"), log({"strength.kl": [1.0, 1.0]}, "prune")]
    )
    texts = [
        {text.text for text in ElementTree.fromstring(figure.wide).iter("text")}
        for figure in figures
    ]
    assert "prune" in texts[0]
    assert "recover" not in texts[0]
    assert "recover" in texts[1]
    assert "prune" not in texts[1]


def test_extremes_of_a_long_run_are_drawn() -> None:
    values = [0.5] * 20_000
    values[7_001], values[15_003] = 0.95, 0.05
    (figure,) = trail_figures([log({"distilled.layer1": values})])
    (shade,) = [
        path.get("d") or ""
        for path in ElementTree.fromstring(figure.wide).iter("path")
        if "spread" in (path.get("class") or "")
    ]
    heights = [float(y) for y in re.findall(r",(-?[\d.]+)", shade)]
    ticks = {
        text.text: float(text.get("y") or 0) - 4
        for text in ElementTree.fromstring(figure.wide).iter("text")
        if text.text in ("0.0", "1.0")
    }
    scale = ticks["0.0"] - ticks["1.0"]
    assert min(heights) == pytest.approx(ticks["0.0"] - 0.95 * scale, abs=0.2)
    assert max(heights) == pytest.approx(ticks["0.0"] - 0.05 * scale, abs=0.2)
    assert len(figure.wide) < 25_000


def test_a_fallback_is_said_with_its_steps() -> None:
    values = [1.0] * 6 + [0.0] * 4 + [1.0] * 5 + [0.75] * 5 + [1.0] * 3
    assert fallbacks([log({FALLBACK: values}), log({"strength.kl": [1.0]})]) == [
        "recover: nothing showed that moving a strength helps, and all of the dean's were the recipe's from "
        "step 11 to 15, step 21 on."
    ]
    assert fallbacks([log({FALLBACK: [0.0] * 5})]) == []


def test_a_dean_that_never_moved_is_said_with_the_reason() -> None:
    judged = {FALLBACK: [0.0] * 4, JUDGED: [0.0, 0.0, 0.0, 1.0], MOVED: [0.0, 1.0, 1.0, 1.0]}
    assert unmoved([log(judged), log({FALLBACK: [0.0] * 5}), log({"strength.kl": [1.0]})]) == []
    early = log({JUDGED: [0.0] * 4, MOVED: [0.0, 1.0, 1.0, 1.0]})
    still = log({JUDGED: [0.0] * 4, MOVED: [0.0] * 4}, "ddsl-prune")
    noise = log({JUDGED: [0.0] + [1.0] * 3, MOVED: [0.0] * 4})
    assert unmoved([early, still, noise]) == [
        "ddsl-prune, the dean: it never moved a strength from the recipe's: there were too few probes to "
        "judge it.",
        "recover, the dean: it never moved a strength from the recipe's: there was no evidence that "
        "moving one helps.",
    ]


def write_log(run: Path, steps: int) -> None:
    with (run / "logs" / "recover-1a2b.jsonl").open("w") as file:
        for step in range(1, steps + 1):
            record: dict[str, Any] = {"kind": "trail", "step": step, "strength.task": None}
            record |= {
                f"strength.at@{name}": (step * 7919 + i) % 100 for i, name in enumerate(DEPTH)
            }
            record |= {f"distilled.{name}": (step * i % 9) / 9 for i, name in enumerate(DEPTH)}
            file.write(json.dumps(record) + "\n")
        file.write(
            json.dumps({"kind": "epoch", "step": steps, "loss": 1.0, "strength.kl": 0.9}) + "\n"
        )
        file.write('{"kind": "tra')


def test_the_page_holds_a_long_trail_in_little_room(
    write_run: Write, tmp_path: Path, parse: Callable[[str], Any]
) -> None:
    run = write_run("net")
    write_log(run, 3_000)
    (source,) = read_sources([run]).runs
    recover = next(one for one in source.logs if one.stage == "recover")
    assert len(recover.rows) == 1
    assert recover.unreadable == 1
    assert recover.trail["strength.at@layer3"].count == 3_000
    assert "strength.task" not in recover.trail  # it never was a number
    html = write_page([run], tmp_path / "page.html").read_text(encoding="utf-8")
    read = parse(html)
    assert "Strengths, step by step" in read.inside("section-title")
    titles = read.inside("figure-title")
    assert "Distillation strengths" in titles
    assert "Strengths of supervision" not in titles  # the epochs' means would say it again
    assert "3\u202f000 in all" in " ".join(read.inside("intro"))
    assert len(html) < 400_000


def test_a_run_without_a_trail_has_the_means_of_its_epochs(
    write_run: Write, tmp_path: Path, parse: Callable[[str], Any]
) -> None:
    read = parse(write_page([write_run("net")], tmp_path / "page.html").read_text(encoding="utf-8"))
    assert "Strengths, step by step" not in read.inside("section-title")
    assert "Strengths of supervision" in read.inside("figure-title")


def test_a_layer_has_one_colour_in_all_figures() -> None:
    numbers = {f"strength.at@{name}": [900.0, 900.0] for name in DEPTH[:3]}
    numbers |= {f"distillability.at@{name}": [0.1, 0.2] for name in DEPTH[:3]}
    numbers |= {f"distilled.{name}": [0.1, 0.2] for name in DEPTH[:3]}
    numbers |= {"strength.kl": [1.0, 1.0], "distillability.kl": [0.5, 0.5]}
    numbers |= {"distilled.logits": [0.5, 0.5], "temperature": [4.0, 4.0]}
    colours: dict[str, set[str]] = {}
    for figure in trail_figures([log(numbers)]):
        for text in ElementTree.fromstring(figure.wide).iter("text"):
            if "ending" in (text.get("class") or "") and text.text in DEPTH:
                colours.setdefault(text.text, set()).add(text.get("class") or "")
    assert sorted(colours) == DEPTH[:3]
    assert all(len(found) == 1 for found in colours.values())
    assert len(set.union(*colours.values())) == 3

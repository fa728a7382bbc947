"""Charts: everything drawn lies inside the drawing, whatever the data; nothing breaks on no data."""

from __future__ import annotations

import math
import re
import xml.etree.ElementTree as ElementTree
from collections.abc import Iterator

import pytest
from hypothesis import given
from hypothesis import strategies as st

from benchmarks.page.charts.labels import Box, place_labels, text_width
from benchmarks.page.charts.plot import Axis, Band, Mark, Plot, Series
from benchmarks.page.charts.style import COLOURS, series_style
from benchmarks.page.charts.svg import Svg, number, tag
from benchmarks.page.charts.timeline import Bar, Timeline

WIDTH, HEIGHT = 560, 300
values = st.one_of(st.none(), st.floats(allow_nan=True, allow_infinity=True, width=32))
points = st.lists(
    st.tuples(st.floats(-1e6, 1e6).filter(lambda x: x == 0 or abs(x) > 1e-6), values), max_size=8
)


def drawn(plot: Plot) -> ElementTree.Element:
    return ElementTree.fromstring(plot.svg(WIDTH, HEIGHT))


def plot_of(*series: Series, log: bool = False, **more: object) -> Plot:
    return Plot("title", "description", Axis("x", log=log), Axis("y"), series, **more)  # type: ignore[arg-type]


def places(svg: ElementTree.Element) -> Iterator[tuple[float, float]]:
    """Coordinates of everything that stands for data."""
    for element in svg.iter():
        if element.get("cx"):
            yield float(element.get("cx") or 0), float(element.get("cy") or 0)
        if element.get("points"):
            pairs = (element.get("points") or "").split()
            yield from ((float(a), float(b)) for a, b in (pair.split(",") for pair in pairs))
        at = [0.0, 0.0]
        for command, first, second in re.findall(
            r"([MLHV])(-?[\d.]+)(?:,(-?[\d.]+))?", element.get("d") or ""
        ):
            if command in "ML":
                at = [float(first), float(second)]
            else:
                at["HV".index(command)] = float(first)
            yield at[0], at[1]


@given(points, points, st.sampled_from(["line", "step", "area", "scatter"]), st.booleans())
def test_what_is_drawn_lies_inside_the_drawing(
    first: list[tuple[float, float | None]],
    second: list[tuple[float, float | None]],
    kind: str,
    log: bool,
) -> None:
    one = Series("a", first, series_style(0), kind, [str(x) for x, _ in first], dots=True)
    two = Series("b", second, series_style(1), kind, labels=["name"] * len(second))
    for x, y in places(drawn(plot_of(one, two, log=log))):
        assert -1 <= x <= WIDTH + 1
        assert -1 <= y <= HEIGHT + 1


@pytest.mark.parametrize("kind", ["line", "step", "area", "scatter"])
def test_no_points_say_so_and_one_point_is_seen(kind: str) -> None:
    empty = Plot("t", "d", Axis("x"), Axis("y"), [Series("a", [], series_style(0), kind)])
    assert "nothing to draw" in empty.svg(WIDTH, HEIGHT)
    hollow = plot_of(Series("a", [(1.0, None), (2.0, math.nan)], series_style(0), kind))
    assert "nothing to draw" in hollow.svg(WIDTH, HEIGHT)
    single = drawn(plot_of(Series("a", [(1.0, 2.0)], series_style(0), kind)))
    assert len(list(places(single))) >= 1


def test_a_missing_value_interrupts_the_line() -> None:
    whole = [(float(i), 1.0 + i) for i in range(6)]
    broken: list[tuple[float, float | None]] = [*whole]
    broken[3] = (3.0, math.nan)

    def paths(series: list[tuple[float, float | None]]) -> int:
        svg = drawn(plot_of(Series("a", series, series_style(0))))
        return sum("line" in (element.get("class") or "") for element in svg.iter())

    assert paths([*whole]) == 1
    assert paths(broken) == 2


def test_what_is_beyond_a_fixed_axis_is_left_out() -> None:
    axis = Axis("x", low=0, high=10)
    series = Series("a", [(5.0, 1.0), (50.0, 1.0)], series_style(0), "scatter")
    svg = ElementTree.fromstring(Plot("t", "d", axis, Axis("y"), [series]).svg(WIDTH, HEIGHT))
    assert len(list(places(svg))) == 1


def test_it_is_accessible_and_escaped() -> None:
    plot = Plot("a < b", "c & d", Axis("x"), Axis("y"),
                [Series("s", [(1, 1)], series_style(0), "scatter", ["<tip>"], ["<b>"])],
                [Mark(1, "<m>")], [Band(0.9, 1.1, "<stage>")])  # fmt: skip
    svg = drawn(plot)
    assert svg.get("role") == "img"
    assert [element.text for element in svg if element.tag in ("title", "desc")] == [
        "a < b",
        "c & d",
    ]
    texts = {element.text for element in svg.iter("text")}
    assert {"<b>", "<m>"} <= texts
    assert "<tip>" in {element.get("data-tip") for element in svg.iter()}


def test_series_differ_in_more_than_colour() -> None:
    styles = [series_style(index) for index in range(3 * COLOURS)]
    assert len({style.dash for style in styles[:COLOURS]}) == COLOURS
    assert len({style.marker for style in styles[:COLOURS]}) == COLOURS
    assert len({(style.name, style.marker) for style in styles}) == len(styles)


def test_coordinates_are_finite_numbers() -> None:
    assert [number(value) for value in (1.0, 2.26, -0.001)] == ["1", "2.3", "0"]
    with pytest.raises(ValueError, match="nan"):
        tag("circle", r=math.nan)


def test_markup_is_kept_and_text_is_escaped() -> None:
    assert tag("g", tag("text", "a<b"), "&") == "<g><text>a&lt;b</text>&amp;</g>"
    assert tag("g", Svg("<i/>"), data_tip='"') == '<g data-tip="&quot;"><i/></g>'


@given(
    st.lists(
        st.tuples(st.floats(60, 540), st.floats(20, 250), st.text(min_size=1, max_size=80)),
        min_size=1,
        max_size=8,
    )
)
def test_labels_stay_inside(labels: list[tuple[float, float, str]]) -> None:
    area = Box(50, 10, 550, 260)
    placed = place_labels(labels, [(x, y) for x, y, _ in labels], [], area)
    assert 1 <= len(placed) <= len(labels)
    for label in placed:
        width = text_width(label.text, 12)
        left = label.x - {"start": 0, "middle": width / 2, "end": width}[label.anchor]
        assert left >= 49.9
        assert left + width <= 550.1


def test_labels_of_two_points_apart_do_not_cover_each_other() -> None:
    placed = place_labels(
        [(100, 100, "first"), (104, 103, "second")],
        [(100, 100), (104, 103)],
        [],
        Box(0, 0, 500, 300),
    )
    boxes = []
    for label in placed:
        width = text_width(label.text, 12)
        left = label.x - {"start": 0, "middle": width / 2, "end": width}[label.anchor]
        boxes.append(Box(left, label.y - 11, left + width, label.y + 3))
    assert boxes[0].overlap(boxes[1]) == 0


@given(st.lists(st.floats(0, 1e6), max_size=8), st.sampled_from([352, 1120]))
def test_stages_follow_one_another(seconds: list[float], width: int) -> None:
    bars = [Bar(f"stage {index}", value, f"{value} s") for index, value in enumerate(seconds)]
    svg = ElementTree.fromstring(Timeline("t", "d", bars).svg(width))
    rects = list(svg.iter("rect"))
    assert len(rects) == len(seconds)
    starts = [float(rect.get("x") or 0) for rect in rects]
    assert starts == sorted(starts)
    assert all(float(r.get("x") or 0) + float(r.get("width") or 0) <= width for r in rects)


def test_names_that_could_only_cover_others_are_left_out() -> None:
    labels = [(100.0, 100.0, "a name of some length")] * 40
    placed = place_labels(labels, [(100, 100)], [], Box(0, 0, 400, 200))
    assert 1 < len(placed) < 40

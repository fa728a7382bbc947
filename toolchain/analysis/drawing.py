"""Two drawings as SVG files of their own: distillability by depth at several times, sparsability by layer."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from benchmarks.page.charts.labels import text_width
from benchmarks.page.charts.plot import Axis, Plot, Series
from benchmarks.page.charts.style import Style, series_style, swatch
from benchmarks.page.charts.svg import Svg, tag
from benchmarks.statistics.student_t import mean_interval
from toolchain.analysis.probing import Probed
from toolchain.analysis.sparsities import Damage

WIDTH, HEIGHT, LEGEND_ROW, MARGIN = 900, 380, 22, 14
MOST_TIMES = 5  # lines in the drawing; the table has all
_LEGEND_PX = 13
# The page's colours (benchmarks/page/page.css), on white: a file that opens anywhere has one look.
_STYLE = """
text { font-family: system-ui, "Segoe UI", Roboto, "DejaVu Sans", sans-serif; fill: #1b1d22; }
.tick { font-size: 12px; fill: #5c6370; } .label, .key { font-size: 13px; fill: #1b1d22; }
.grid { stroke: #ebecef; } .axis { stroke: #5c6370; }
.line { fill: none; stroke-width: 2; stroke-linejoin: round; stroke: currentColor; }
.mark { fill: currentColor; stroke: #ffffff; stroke-width: 1.2; } .target { fill: none; }
.s0 { color: #0072b2; } .s1 { color: #d55e00; } .s2 { color: #00855f; }
.s3 { color: #b0528c; } .s4 { color: #b57a00; } .s5 { color: #3f97cc; }
"""


def distillability_svg(seen: Sequence[Probed], what: str) -> str:
    """Cosines by depth, a line for each time, with 95 % of the mean over the probe batches.

    Args:
        what: ``layers`` or ``terms``.
    """
    names = list(dict.fromkeys(name for each in seen for name in getattr(each, what)))
    x = {name: float(place) for place, name in enumerate(names, 1)}
    series, keys = [], []
    times = _some(seen)
    for number, probed in enumerate(times):
        found: Mapping[str, Sequence[float]] = getattr(probed, what)
        style, beside = series_style(number), _beside(number, len(times))
        said = f"step {probed.step:,}" if len(seen) > 1 else "before training"
        points = [(x[name] + beside, _mean(values)) for name, values in found.items()]
        tips = [f"{name}, {said}: {y:+.3f}" for name, (_, y) in zip(found, points, strict=True)]
        series.append(Series(said, points, style, tips=tips, dots=True))
        bars: list[tuple[float, float | None]] = []
        for name, values in found.items():
            interval = mean_interval(values)
            if interval is not None:
                at = x[name] + beside
                bars += [(at, interval[0]), (at, interval[1]), (at, None)]
        series.append(Series(said, bars, _solid(style)))
        keys.append((said, number))
    noun = "layer" if what == "layers" else "term"
    plot = Plot(
        f"Distillability by {noun}",
        f"Cosine of the distillation gradient and the task gradient, by {noun}, at {len(keys)} times",
        _depth(names, noun),
        Axis("cosine with the task gradient", zero=True, within=(-1, 1)),
        series,
    )
    return _file(plot, keys)


def controllers_svg(by_controller: Mapping[str, Sequence[Probed]]) -> str:
    """The mean cosine over the layers by step, a line for each controller, with 95 % over the probes."""
    series, keys = [], []
    last = max(probed.step for seen in by_controller.values() for probed in seen)
    for number, (name, seen) in enumerate(by_controller.items()):
        style, beside = series_style(number), 0.1 * _beside(number, len(by_controller)) * last
        points, bars, tips = [], list[tuple[float, float | None]](), []
        for probed in seen:
            means = probed.over_layers()
            points.append((probed.step + beside, _mean(means)))
            tips.append(f"{name}, step {probed.step:,}: {_mean(means):+.3f}")
            interval = mean_interval(means)
            if interval is not None:
                at = probed.step + beside
                bars += [(at, interval[0]), (at, interval[1]), (at, None)]
        series.append(Series(name, points, style, tips=tips, dots=True))
        series.append(Series(name, bars, _solid(style)))
        keys.append((name, number))
    plot = Plot(
        "Distillability under each controller",
        "Mean over the layers of the cosine of the distillation gradient and the task gradient, by step",
        Axis("step"),
        Axis("cosine with the task gradient"),
        series,
    )
    return _file(plot, keys)


def sparsability_svg(found: Sequence[Damage], when: str) -> str:
    """Rise of the held-out loss by group, a line for each sparsity, with 95 % over the images."""
    names = list(dict.fromkeys(each.group for each in found))
    x = {name: float(place) for place, name in enumerate(names, 1)}
    series, keys = [], []
    sparsities = sorted({each.sparsity for each in found})
    for number, sparsity in enumerate(sparsities):
        beside = _beside(number, len(sparsities))
        mine = [each for each in found if each.sparsity == sparsity]
        said, style = f"{sparsity:.0%} of the channels gone", series_style(number)
        tips = [
            f"{one.group}, {said}: {one.loss:+.3f} nats, {one.top1:+.1f} points" for one in mine
        ]
        points = [(x[one.group] + beside, one.loss) for one in mine]
        series.append(Series(said, points, style, tips=tips, dots=True))
        bars: list[tuple[float, float | None]] = []
        for one in mine:
            at = x[one.group] + beside
            bars += [(at, one.loss_interval[0]), (at, one.loss_interval[1]), (at, None)]
        series.append(Series(said, bars, _solid(style)))
        keys.append((said, number))
    plot = Plot(
        f"Sparsability {when}, by group",
        "Rise of the loss on held-out images when channels of one group alone go, by group",
        _depth(names, "group"),
        Axis("rise of the loss, nats", zero=True),
        series,
    )
    return _file(plot, keys)


def _some(seen: Sequence[Probed]) -> list[Probed]:
    """A few times, evenly spread, with the first and the last."""
    if len(seen) <= MOST_TIMES:
        return list(seen)
    last = len(seen) - 1
    return [seen[round(number * last / (MOST_TIMES - 1))] for number in range(MOST_TIMES)]


def _beside(number: int, count: int) -> float:
    """How far a series stands beside its place, so that intervals do not cover each other."""
    return 0.08 * (number - (count - 1) / 2)


def _solid(style: Style) -> Style:
    return Style(style.name, "", style.marker)


def _mean(values: Sequence[float]) -> float:
    return sum(values) / len(values)


def _depth(names: Sequence[str], noun: str) -> Axis:
    """Places in the network; the ends are named, because all names would not fit."""
    count = len(names)
    label = f"{noun}, in the order of the network"
    if names:
        label += f" (1 is {names[0]}, {count} is {names[-1]})"
    step = max(1, -(-count // 20))
    ticks = [(float(n), str(n)) for n in range(1, count + 1) if n == 1 or n % step == 0]
    return Axis(label, ticks=ticks, low=0.5, high=count + 0.5)


def _file(plot: Plot, keys: Sequence[tuple[str, int]]) -> str:
    """The plot with its legend as an SVG document."""
    drawn = plot.svg(WIDTH, HEIGHT)
    inside = Svg(drawn.replace("<svg ", f'<svg width="{WIDTH}" height="{HEIGHT}" ', 1))
    parts: list[Svg] = []
    at, row = 60.0, 0
    for said, number in keys:
        needed = 34 + text_width(said, _LEGEND_PX) + 18
        if at + needed > WIDTH and at > 60:
            at, row = 60.0, row + 1
        y = MARGIN + row * LEGEND_ROW
        key = swatch(series_style(number), line=True, dot=True)
        sized = Svg(
            key.replace("<svg ", f'<svg x="{at:g}" y="{y - 10:g}" width="28" height="14" ', 1)
        )
        parts += [sized, tag("text", said, class_="key", x=at + 34, y=y + 2)]
        at += needed
    top = MARGIN + (row + 1) * LEGEND_ROW - 8
    height = top + HEIGHT
    placed = tag("g", inside, transform=f"translate(0 {top})")
    head = (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {height}" width="{WIDTH}">'
    )
    background = tag("rect", width=WIDTH, height=height, fill="#ffffff")
    return f"{head}<style>{_STYLE}</style>{background}{''.join(parts)}{placed}</svg>\n"

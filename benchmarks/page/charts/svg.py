"""SVG elements as text; whatever is written into one is escaped here."""

from __future__ import annotations

import math
from html import escape
from typing import Union

Value = Union[str, float, int]


class Svg(str):
    """Text that is markup already."""

    __slots__ = ()


def tag(name: str, *content: str, **attributes: Value) -> Svg:
    """An element; an underscore in an attribute's name stands for a hyphen, one at its end for nothing.

    >>> tag("text", "a < b", class_="tick", x=1.50001, text_anchor="end")
    '<text class="tick" x="1.5" text-anchor="end">a &lt; b</text>'
    """
    shown = "".join(
        f' {key.rstrip("_").replace("_", "-")}="{_attribute(value)}"'
        for key, value in attributes.items()
    )
    inside = "".join(part if isinstance(part, Svg) else escape(part) for part in content)
    return Svg(f"<{name}{shown}>{inside}</{name}>")


def together(*parts: Svg) -> Svg:
    return Svg("".join(parts))


def number(value: float) -> str:
    """A coordinate with a tenth of a pixel.

    Raises:
        ValueError: It is not finite; SVG has no such number.
    """
    if not math.isfinite(value):
        raise ValueError(f"a coordinate is {value}")
    return f"{round(value, 1) + 0.0:g}"


def _attribute(value: Value) -> str:
    return escape(value, quote=True) if isinstance(value, str) else number(value)

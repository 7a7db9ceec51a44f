"""Small charts side by side as one SVG file, whose colours follow the reader's light or dark page."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from xml.etree import ElementTree as Xml

__all__ = ["Panel", "panels"]

_STYLE = """
text { font: 12px system-ui, sans-serif; fill: #1f2328 }
.title { font-weight: 600 } .y { text-anchor: end } .x { text-anchor: middle }
.grid { stroke: #d1d9e0; fill: none } .level { stroke: #59636e; stroke-dasharray: 1 4; fill: none; stroke-width: 2 }
.line { fill: none; stroke-width: 2; stroke-linejoin: round }
.c1 { stroke: #0969da } .c2 { stroke: #bc4c00; stroke-dasharray: 6 3 } .c3 { stroke: #8250df; stroke-dasharray: 2 3 }
@media (prefers-color-scheme: dark) {
  text { fill: #e6edf3 } .grid { stroke: #3d444d } .level { stroke: #9198a1 }
  .c1 { stroke: #4493f8 } .c2 { stroke: #f0883e } .c3 { stroke: #ab7df8 }
}
"""
_WIDTH, _HEIGHT = 300, 210
_LEFT, _RIGHT, _TOP, _BOTTOM = 44, 12, 26, 24
_LEGEND = 34
_ACROSS = 3


@dataclass(frozen=True)
class Panel:
    """Curves of points ``(x, y)``, with x as labelled places of one distance; ``level``: a line across."""

    title: str
    curves: Mapping[str, Sequence[tuple[int, float]]]
    level: float | None = None


def panels(title: str, places: Sequence[int], level_name: str, shown: Sequence[Panel]) -> str:
    """Return the SVG file.

    Args:
        title: for readers who do not see it.
        places: the values of x, ascending.
        level_name: of the lines across.
        shown: panels with the same names of curves.

    """
    columns = min(_ACROSS, max(1, len(shown)))
    rows = math.ceil(len(shown) / columns)
    width, height = columns * _WIDTH, rows * _HEIGHT + _LEGEND
    drawing = Xml.Element("svg", xmlns="http://www.w3.org/2000/svg", viewBox=f"0 0 {width} {height}", role="img")
    Xml.SubElement(drawing, "title").text = title
    Xml.SubElement(drawing, "style").text = _STYLE
    for number, panel in enumerate(shown):
        across, down = number % columns * _WIDTH, number // columns * _HEIGHT
        _draw(Xml.SubElement(drawing, "g", transform=f"translate({across} {down})"), places, panel)
    _legend(drawing, height - 12, [*(shown[0].curves if shown else ())], level_name)
    return Xml.tostring(drawing, "unicode") + "\n"


def _draw(box: Xml.Element, places: Sequence[int], panel: Panel) -> None:
    values = [y for points in panel.curves.values() for _, y in points] + ([panel.level] if panel.level else [])
    step = next(size for size in (0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1) if max(values) - min(values) <= 5 * size)
    low, high = math.floor(min(values) / step), math.ceil(max(values) / step)
    bottom, right = _HEIGHT - _BOTTOM, _WIDTH - _RIGHT

    def across(x: int) -> str:
        return f"{_LEFT + 12 + (right - _LEFT - 24) * places.index(x) / (len(places) - 1):.1f}"

    def down(y: float) -> str:
        return f"{bottom - (bottom - _TOP) * (y / step - low) / max(high - low, 1):.1f}"

    _text(box, panel.title, str(_LEFT), "16", "title")
    for tick in range(low, high + 1):
        Xml.SubElement(box, "path", {"class": "grid", "d": f"M{_LEFT} {down(tick * step)}H{right}"})
        _text(box, f"{tick * step:.2f}", str(_LEFT - 6), f"{float(down(tick * step)) + 4:.1f}", "y")
    for x in places:
        _text(box, f"{x:,}", across(x), str(bottom + 16), "x")
    if panel.level is not None:
        Xml.SubElement(box, "path", {"class": "level", "d": f"M{_LEFT} {down(panel.level)}H{right}"})
    for number, points in enumerate(panel.curves.values(), 1):
        path = "M" + "L".join(f"{across(x)} {down(y)}" for x, y in points)
        if points:
            Xml.SubElement(box, "path", {"class": f"line c{number}", "d": path})


def _legend(drawing: Xml.Element, down: int, names: Sequence[str], level_name: str) -> None:
    kinds = [*((name, f"line c{number}") for number, name in enumerate(names, 1)), (level_name, "level")]
    for number, (name, kind) in enumerate(kinds):
        left = _LEFT + 130 * number
        Xml.SubElement(drawing, "path", {"class": kind, "d": f"M{left} {down - 4}h24"})
        _text(drawing, name, str(left + 30), str(down), "name")


def _text(box: Xml.Element, words: str, x: str, y: str, kind: str) -> None:
    Xml.SubElement(box, "text", {"class": kind, "x": x, "y": y}).text = words

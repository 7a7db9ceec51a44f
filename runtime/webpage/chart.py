"""Charts as inline SVG, which take the colours of the page: curves with named axes, and bars."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from .elements import Element, element

__all__ = ["Curve", "bars", "curves"]

# In units of the drawing, about pixels: the text keeps its size on a phone, which is as wide.
_WIDTH, _HEIGHT = 420, 250
_LEFT, _RIGHT, _TOP, _BOTTOM = 46, 10, 10, 36
_TICKS = 5


@dataclass(frozen=True)
class Curve:
    """A named curve: points ``(x, y)``, in the order of x; a point without y is left out."""

    name: str
    points: Sequence[tuple[float, float | None]]


def curves(title: str, x_name: str, y_name: str, shown: Sequence[Curve]) -> Element:
    """Return a figure of curves over one axis.

    Args:
        title: of the figure.
        x_name: of the horizontal axis, with its unit.
        y_name: of the vertical axis, with its unit.
        shown: one curve or two, told apart by colour and dashes.

    """
    points = [(x, y) for curve in shown for x, y in curve.points if y is not None]
    legend = (element("li", "", _swatch(number), curve.name) for number, curve in enumerate(shown, 1))
    return element(
        "figure",
        "chart",
        element("figcaption", "", element("h3", "", title), element("ul", "legend", *legend)),
        _drawing(f"{title}: {y_name} by {x_name}", x_name, y_name, shown, points),
    )


def _swatch(number: int) -> Element:
    line = element("path", {"class": f"line curve-{number}", "d": "M1 5H19"})
    return element("svg", {"class": "swatch", "viewBox": "0 0 20 10", "aria-hidden": "true"}, line)


def _drawing(
    label: str, x_name: str, y_name: str, shown: Sequence[Curve], points: Sequence[tuple[float, float]]
) -> Element:
    box = {"class": "plot", "viewBox": f"0 0 {_WIDTH} {_HEIGHT}", "role": "img", "aria-label": label}
    drawing = element("svg", box)
    if not points:
        return drawing
    x_ticks = _ticks(min(x for x, _ in points), max(x for x, _ in points), whole=True)
    y_ticks = _ticks(min(0.0, min(y for _, y in points)), max(y for _, y in points))
    bottom, right = _HEIGHT - _BOTTOM, _WIDTH - _RIGHT
    lowest, highest = min([x_ticks[0], *(x for x, _ in points)]), max([x_ticks[-1], *(x for x, _ in points)])

    def across(x: float) -> str:
        return _number(_LEFT + 8 + (right - _LEFT - 16) * (x - lowest) / max(highest - lowest, 1e-9))

    def down(y: float) -> str:
        return _number(bottom - (bottom - _TOP) * (y - y_ticks[0]) / (y_ticks[-1] - y_ticks[0]))

    for tick in y_ticks:
        drawing.append(element("path", {"class": "grid", "d": f"M{_LEFT} {down(tick)}H{right}"}))
        drawing.append(_text(f"{tick:g}", _LEFT - 6, down(tick), "y"))
    for tick in x_ticks:
        drawing.append(_text(f"{tick:g}", across(tick), bottom + 15, "x"))
    drawing.append(_text(x_name, (_LEFT + right) / 2, _HEIGHT - 5, "x name"))
    turned = {"class": "x name", "transform": f"translate(11 {_number((_TOP + bottom) / 2)}) rotate(-90)"}
    drawing.append(element("text", turned, y_name))
    for number, curve in enumerate(shown, 1):
        places = [(across(x), down(y)) for x, y in curve.points if y is not None]
        drawing.append(element("path", {"class": f"line curve-{number}", "d": _path(places)}))
    return drawing


def _path(places: Sequence[tuple[str, str]]) -> str:
    if len(places) == 1:  # a line without length: drawn as a dot
        return f"M{places[0][0]} {places[0][1]}h0"
    return "M" + "L".join(f"{x} {y}" for x, y in places)


def _text(text: str, x: float | str, y: float | str, kind: str) -> Element:
    return element("text", {"class": kind, "x": str(x), "y": str(y)}, text)


def _number(value: float) -> str:
    return f"{value:.1f}".removesuffix(".0")


def _ticks(low: float, high: float, *, whole: bool = False) -> list[float]:
    """Return about five round values: the first at most ``low`` and the last at least ``high``.

    Whole ones lie between both instead.
    """
    step = (high - low) / _TICKS or 1.0
    scale = 10.0 ** math.floor(math.log10(step))
    step = next(scale * factor for factor in (1, 2, 2.5, 5, 10) if scale * factor >= step - 1e-12)
    if whole:
        step = float(max(1, round(step)))
        first = math.ceil(low / step) * step
        return [first + step * number for number in range(int((high - first) // step) + 1)] or [low]
    first = math.floor(low / step + 1e-9)
    last = math.ceil(high / step - 1e-9)
    return [round(step * number, 10) for number in range(first, max(last, first + 1) + 1)]


def bars(shown: Sequence[tuple[str, float]], label: str) -> Element:
    """Return a bar for each share, 0 to 1, beside each other; pointing at one shows its name.

    Args:
        shown: names and shares.
        label: the whole in words.

    """
    box = {"class": "bars-plot", "viewBox": f"0 0 {10 * len(shown)} 100", "preserveAspectRatio": "none"}
    drawing = element("svg", box | {"role": "img", "aria-label": label})
    for place, (name, share) in enumerate(shown):
        height = max(0.5, 100 * share)
        shape = {"x": f"{10 * place + 1}", "y": _number(100 - height), "width": "8", "height": _number(height)}
        drawing.append(element("rect", shape, element("title", "", f"{name}: {share:.3f}")))
    return drawing

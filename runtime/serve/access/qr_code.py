"""QR codes of addresses: for a terminal, and as SVG for a page."""

from __future__ import annotations

import segno

__all__ = ["qr_lines", "qr_svg"]

# Light modules around a code: the standard has 4, and cameras of phones need fewer on a terminal.
_EDGE, _NARROW_EDGE = 4, 2
_HALVES = {(1, 1): "█", (1, 0): "▀", (0, 1): "▄", (0, 0): " "}


def qr_lines(text: str) -> list[str]:
    """Return a code in half blocks, which stand for its dark modules: two rows of modules a line."""
    rows = [list(row) for row in _code(text).matrix_iter(border=_NARROW_EDGE)]
    rows.append([0] * len(rows[0]))  # the number of rows is odd
    return [
        "".join(_HALVES[int(above), int(below)] for above, below in zip(*pair, strict=True))
        for pair in zip(rows[::2], rows[1::2], strict=True)
    ]


def qr_svg(text: str) -> str:
    """Return a code as an SVG file, dark on white whatever the page's colours are."""
    code = _code(text)
    side = code.symbol_size(border=_EDGE)[0]
    path = "".join(
        f"M{x} {y}h1v1h-1z"
        for y, row in enumerate(code.matrix_iter(border=_EDGE))
        for x, dark in enumerate(row)
        if dark
    )
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {side} {side}" width="{side}" height="{side}">'
        f'<path fill="#fff" d="M0 0h{side}v{side}H0z"/><path d="{path}" shape-rendering="crispEdges"/></svg>'
    )


def _code(text: str) -> segno.QRCode:
    return segno.make_qr(text, error="m", boost_error=False)

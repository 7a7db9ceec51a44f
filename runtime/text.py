"""Untrusted text (file names, labels, metadata) made safe to show on one line."""

from __future__ import annotations

import os
import unicodedata
from collections.abc import Collection, Sequence

__all__ = ["display_path", "display_width", "markdown_table", "printable"]

# Categories that move the cursor, hide text or reorder it: control, format, surrogate, line and paragraph separators.
_UNSAFE = frozenset({"Cc", "Cf", "Cs", "Zl", "Zp"})


def printable(text: str) -> str:
    r"""Return ``text`` with control, format and undecodable characters shown as escapes (``\n``, ``\x1b``)."""
    if text.isascii() and text.isprintable():
        return text
    return "".join(_escape(c) if unicodedata.category(c) in _UNSAFE else c for c in text)


def display_path(path: str | bytes | os.PathLike[str]) -> str:
    r"""Return a path as one safe line; bytes that are not UTF-8 are shown as ``\xNN``, never dropped."""
    return printable(os.fsdecode(path))


def markdown_table(
    header: Sequence[str], rows: Sequence[Sequence[str]], *, right_aligned: Collection[int] = ()
) -> list[str]:
    r"""Return the lines of a Markdown table that is as readable as it is: padded, so that its columns line up.

    Args:
        header: the name of each column.
        rows: as many cells each; may be untrusted: ``|`` is escaped, and what :func:`printable` escapes.
        right_aligned: the columns of numbers, counted from 0.

    """
    cells = [[printable(cell).replace("|", "\\|") for cell in row] for row in (header, *rows)]
    widths = [max(3, *map(display_width, column)) for column in zip(*cells, strict=True)]
    right = [place in right_aligned for place in range(len(widths))]
    rule = ["-" * (width - 1) + ":" if is_right else "-" * width for width, is_right in zip(widths, right, strict=True)]
    padded = [
        [_padded(cell, width, is_right) for cell, width, is_right in zip(row, widths, right, strict=True)]
        for row in cells
    ]
    return [f"| {' | '.join(row)} |" for row in (padded[0], rule, *padded[1:])]


def display_width(text: str) -> int:
    """Return the columns that ``text`` takes on a terminal: East Asian wide characters take two, accents none."""
    return sum(0 if unicodedata.combining(c) else 2 if unicodedata.east_asian_width(c) in "WF" else 1 for c in text)


def _padded(cell: str, width: int, right: bool) -> str:
    space = " " * (width - display_width(cell))
    return space + cell if right else cell + space


def _escape(character: str) -> str:
    code = ord(character)
    if 0xDC80 <= code <= 0xDCFF:  # a byte that os.fsdecode could not decode
        return f"\\x{code - 0xDC00:02x}"
    return character.encode("unicode_escape").decode("ascii")
